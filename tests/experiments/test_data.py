"""Data splits: nothing lost, nothing shared, everything repeatable."""

import pytest
import torch

from npn.errors import ConfigurationError
from npn.experiments.data.moons import moons
from npn.experiments.data.splits import Split, split_off


def test_splitting_keeps_every_example_once_with_its_class() -> None:
    whole = Split(torch.arange(20.0), torch.arange(20))
    stay, aside = split_off(whole, 6, seed=1)
    assert (len(stay), len(aside)) == (14, 6)
    assert sorted(stay.y.tolist() + aside.y.tolist()) == list(range(20))
    for part in (stay, aside):
        assert part.x.tolist() == part.y.tolist()
    assert split_off(whole, 6, seed=1)[1].y.equal(aside.y)
    assert not split_off(whole, 6, seed=2)[1].y.equal(aside.y)


@pytest.mark.parametrize("count", [0, -1, 20, 21])
def test_a_part_cannot_be_empty(count: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 19 of 20"):
        split_off(Split(torch.arange(20.0), torch.arange(20)), count, seed=0)


def test_moons_are_as_in_the_paper_and_validation_comes_out_of_training() -> None:
    data = moons(seed=3)
    assert len(data.train) + len(data.validation) == 500
    assert len(data.test) == 500
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64
    assert data.classes == 2
    parts = [set(map(tuple, part.x.tolist())) for part in (data.train, data.validation, data.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert set(data.validation.y.tolist()) == {0, 1}


def test_moons_follow_from_the_seed() -> None:
    assert moons(4).test.x.equal(moons(4).test.x)
    seen = [part.x for seed in (4, 5) for part in (moons(seed).train, moons(seed).test)]
    firsts = {tuple(x[0].tolist()) for x in seen}
    assert len(firsts) == 4
