"""Gates that start informed: the mean of the keep probabilities is kept, and their order is that of the scores."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn._importance import keep_probabilities
from npn.errors import ConfigurationError

from .conftest import TINY

pytestmark = pytest.mark.usefixtures("traces_are_shared")


@pytest.mark.parametrize("function", ["sigmoid", "hard_sigmoid", "shifted_sigmoid"])
@pytest.mark.parametrize(("mean", "spread"), [(0.95, 2.0), (0.5, 4.0), (0.05, 1.0), (0.95, 0.0)])
def test_an_informed_start_keeps_mean_and_order(function: str, mean: float, spread: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 2))
    plastic = npn.attach(model, torch.zeros(1, 4), function=function)
    scores = {"0": torch.randn(300).mul(5).exp(), "2": torch.randn(40)}
    npn.start_from(plastic, scores, mean, spread)
    for k in (7.0, 3.0):
        plastic.k = float("inf")
        plastic.k = k
        for group in plastic.groups:
            pi = group.gate.keep_probability().detach()
            assert pi.mean().item() == pytest.approx(mean, abs=1e-3)
            if spread:
                assert torch.equal(pi.argsort(), scores[group.name].argsort())
                odds = torch.logit(pi.double())
                assert (odds.max() - odds.min()).item() == pytest.approx(2 * spread, rel=1e-3)
            else:
                torch.testing.assert_close(pi, torch.full_like(pi, mean))


def test_equal_scores_start_alike_and_one_unit_at_the_mean() -> None:
    pi = keep_probabilities(torch.tensor([3.0, 1.0, 3.0, float("inf")]), 0.9, 2.0)
    assert pi[0] == pi[2] and pi[1] < pi[0] < pi[3]
    assert keep_probabilities(torch.tensor([5.0])).tolist() == pytest.approx([0.95])
    assert keep_probabilities(torch.zeros(6), 0.7, 3.0).tolist() == pytest.approx([0.7] * 6)


def test_an_informed_start_opens_all_units_and_forgets_their_momentum() -> None:
    model = TINY["mlp"].model()
    x, y = TINY["mlp"].data()
    plastic = npn.attach(model, x)
    gates = torch.optim.Adam(plastic.logits(), lr=1e-2)
    plastic.track(gates)
    plastic.k = 7.0
    plastic.backward(lambda: F.cross_entropy(model(x), y))
    gates.step()
    plastic.close("0", [1])
    before = plastic.group("2").gate.logits.detach().clone()
    npn.start_from(plastic, {"0": torch.tensor([1.0, 4.0, 3.0, 2.0])})
    assert plastic.sizes() == {"0": 4, "2": 3}
    assert not plastic.compact().changes
    first, second = plastic.logits()
    assert not gates.state[first]["exp_avg"].any() and gates.state[second]["exp_avg"].any()
    assert torch.equal(second, before)
    assert first.argsort().tolist() == [0, 3, 2, 1]


def test_errors_of_an_informed_start_set_nothing() -> None:
    _, plastic = TINY["mlp"].attach()
    before = [logits.detach().clone() for logits in plastic.logits()]
    good = torch.arange(4.0)

    def fails(message: str, scores: dict[str, Tensor], *args: float) -> None:
        with pytest.raises(ConfigurationError) as error:
            npn.start_from(plastic, scores, *args)
        assert str(error.value) == message
        assert all(torch.equal(a, b) for a, b in zip(before, plastic.logits(), strict=True))

    fails("no group 'zz'; the model has: 0, 2", {"0": good, "zz": good})
    fails(
        "group '2' has 3 units, got scores of shape (4,); take them from npn.importance after the last resize",
        {"0": good, "2": good},
    )
    fails("mean must be a keep probability in (0, 1), got 1.0", {"0": good}, 1.0)
    fails("spread must be log-odds from 0 to 8, got 9.0", {"0": good}, 0.95, 9.0)
    fails(f"expected scores (n,) without NaN, got {good * float('nan')!r}", {"0": good * float("nan")})
