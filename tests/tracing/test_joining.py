"""What serves several units and what belongs to one: decided by what else unites the units."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npn.tracing.labels import Ledger

HEADS, FEATURES = 3, 4


def ledger() -> tuple[Ledger, Tensor, Tensor, Tensor]:
    """Rows of (3, 4), and tensors of 4 and of 3 that are combined with them."""
    made = Ledger()
    units = made.fresh("rows", 0, HEADS * FEATURES).view(HEADS, FEATURES)
    return made, units, made.fresh("features", 0, FEATURES).expand(HEADS, -1), made.fresh("heads", 0, HEADS)[:, None]


def distinct(unit: object, labels: Tensor) -> int:
    return len(set(unit[labels.numpy()].reshape(-1).tolist()))  # type: ignore[index]


@pytest.mark.parametrize("buffer", [False, True])
def test_what_meets_the_same_units_everywhere_serves_them(buffer: bool) -> None:
    made, units, features, _ = ledger()
    made.serve(features, units, buffer, "here")
    made.unite_along(units, [1])
    unit, reasons = made.resolve()
    assert distinct(unit, units) == HEADS
    assert distinct(unit, features[0]) == FEATURES
    assert reasons == {int(unit[i]): "one table serves several units at here" for i in features[0]}


@pytest.mark.parametrize("buffer", [False, True])
def test_what_meets_one_unit_with_each_entry_belongs_to_it(buffer: bool) -> None:
    made, units, _, heads = ledger()
    made.serve(heads, units, buffer, "here")
    made.unite_along(units, [1])
    unit, reasons = made.resolve()
    assert (unit[heads.numpy()] == unit[units.numpy()]).all()
    assert distinct(unit, units) == HEADS
    assert reasons == {}


def test_without_other_edges_a_parameter_belongs_and_a_buffer_serves() -> None:
    made, units, features, _ = ledger()
    made.serve(features, units, False, "here")
    unit, reasons = made.resolve()
    assert (unit[features.numpy()] == unit[units.numpy()]).all()
    assert distinct(unit, units) == FEATURES
    assert reasons == {}
    made, units, features, _ = ledger()
    made.serve(features, units, True, "here")
    unit, reasons = made.resolve()
    assert distinct(unit, units) == HEADS
    assert len(reasons) == FEATURES


def test_one_that_is_decided_decides_another() -> None:
    """One of each head makes units of heads, which one of each feature then serves, in whichever order they come."""
    for order in (0, 1):
        made, units, features, heads = ledger()
        calls = [(heads, False), (features, False)]
        made.unite_along(units[:2], [1])  # the third head is not known to be one unit
        for own, buffer in calls[:: 1 - 2 * order]:
            made.serve(own, units, buffer, "here")
        unit, _ = made.resolve()
        assert distinct(unit, units) == (HEADS if order == 0 else 1)


def test_entries_of_padding_freeze_what_they_meet() -> None:
    made, units, _, heads = ledger()
    padded = heads.clone()
    padded[0] = 0
    made.serve(padded, units, False, "here")
    made.unite_along(units, [1])
    unit, reasons = made.resolve()
    assert reasons == {int(unit[units[0, 0]]): "added to zero padding at here"}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_resize_of_a_unit_never_cuts_a_tensor_that_serves(data: st.DataObject) -> None:
    """Its entries are of the units that they meet, or they are frozen and all meet the same units."""
    made, units, features, heads = ledger()
    for _ in range(data.draw(st.integers(0, 3))):
        a, b = (data.draw(st.integers(1, HEADS * FEATURES)) for _ in range(2))
        made.unite(torch.tensor([a]), torch.tensor([b]))
    if data.draw(st.booleans()):
        made.unite_along(units, [data.draw(st.integers(0, 1))])
    served = data.draw(st.lists(st.sampled_from([features, heads]), max_size=3))
    for own in served:
        made.serve(own, units, data.draw(st.booleans()), "here")
    unit, reasons = made.resolve()
    for own in served:
        axis = 1 if own is features else 0
        u, o = unit[units.numpy()], unit[own.expand(HEADS, FEATURES).numpy()]
        belongs = bool((u == o).all())
        serves = bool((u == u.take([0], axis)).all()) and all(int(i) in reasons for i in o.reshape(-1))
        assert belongs or serves
