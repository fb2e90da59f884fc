"""Label tensors and the ledger: canonical strides, components, freezing, roles."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npn.tracing.labels import Ledger, canonical, squeeze_constant, varying
from npn.tracing.labels.joining import components


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    keep=st.lists(st.booleans(), min_size=4, max_size=4),
    seed=st.integers(0, 999),
)
def test_canonical_has_stride_0_exactly_where_nothing_varies(shape: list[int], keep: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    small = [s if k else 1 for s, k in zip(shape, keep, strict=False)]
    labels = torch.randint(0, 5, small, generator=generator).expand(shape).contiguous()
    found = canonical(labels)
    assert torch.equal(found, labels)
    for axis, size in enumerate(shape):
        varies = size > 1 and bool((labels != labels.narrow(axis, 0, 1)).any())
        assert (axis in varying(found)) == varies
    squeezed = squeeze_constant(found)
    assert torch.equal(squeezed.expand(shape), labels)
    assert squeezed.numel() <= labels.numel()


def union_find(total: int, pairs: list[tuple[int, int]]) -> list[int]:
    parent = list(range(total))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        if a and b:
            x, y = sorted((root(a), root(b)))
            parent[y] = x
    return [root(i) for i in range(total)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(total=st.integers(1, 30), data=st.data())
def test_components_are_those_of_a_union_find(total: int, data: st.DataObject) -> None:
    label = st.integers(0, total - 1)
    pairs = data.draw(st.lists(st.tuples(label, label), max_size=40))
    cut = len(pairs) // 2
    edges = [
        (torch.tensor([a for a, _ in part], dtype=torch.long), torch.tensor([b for _, b in part], dtype=torch.long))
        for part in (pairs[:cut], pairs[cut:])
    ]
    assert components(total, edges).tolist() == union_find(total, pairs)


def test_long_chains_are_one_component() -> None:
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0)) + 1
    unit = components(2001, [(order[:-1], order[1:])])
    assert unit[0] == 0
    assert set(unit[1:].tolist()) == {1}


def ledger_with(*sizes: int) -> tuple[Ledger, list[Tensor]]:
    ledger = Ledger()
    return ledger, [ledger.fresh(f"p{i}", 0, size) for i, size in enumerate(sizes)]


def test_fresh_labels_are_the_same_at_every_use_and_never_0() -> None:
    ledger, (a, b) = ledger_with(3, 2)
    assert torch.equal(ledger.fresh("p0", 0, 3), a)
    assert sorted([*a.tolist(), *b.tolist()]) == [1, 2, 3, 4, 5]


def test_unite_along_joins_what_differs_along_the_axis_alone() -> None:
    ledger, (a,) = ledger_with(6)
    one = ledger.unite_along(a.view(2, 3), [1])
    assert one.shape == (2, 1)
    unit, reasons = ledger.resolve()
    assert len(set(unit[a.numpy()[:3]])) == len(set(unit[a.numpy()[3:]])) == 1
    assert unit[1] != unit[4]
    assert reasons == {}


def test_unite_along_is_not_misled_by_padding_at_the_start() -> None:
    ledger, (a,) = ledger_with(4)
    padded = torch.nn.functional.pad(a.view(2, 2), (1, 0))
    one = ledger.unite_along(padded, [1])
    unit, _ = ledger.resolve()
    assert unit[1] == unit[2] != unit[3] == unit[4]
    assert bool((one > 0).all())


def test_weights_that_are_summed_are_one_unit_where_they_produce_and_none_where_they_read() -> None:
    ledger, (rows, columns) = ledger_with(3, 3)
    ledger.mark(rows, ledger.produces)
    ledger.mark(columns, ledger.reads)
    ledger.mix(rows, [0], "here")
    ledger.mix(columns, [0], "here")
    unit, _ = ledger.resolve()
    assert len(set(unit[rows.numpy()])) == 1
    assert len(set(unit[columns.numpy()])) == 3


def test_the_first_reason_of_a_component_counts_and_0_is_never_frozen() -> None:
    ledger, (a, b) = ledger_with(2, 2)
    ledger.unite(a, b)
    ledger.freeze(torch.tensor([0, int(b[1])]), "first")
    ledger.freeze(a[1:], "second")
    unit, reasons = ledger.resolve()
    assert reasons == {int(unit[a[1]]): "first"}


def test_zero_unites_with_nothing() -> None:
    ledger, (a,) = ledger_with(2)
    ledger.unite(torch.tensor([0, 0]), a)
    unit, _ = ledger.resolve()
    assert unit.tolist() == [0, 1, 2]


def test_shared_weights_read_together() -> None:
    ledger, (a, b, c) = ledger_with(2, 2, 2)
    ledger.share(a, b)
    ledger.share(b, c)
    ledger.mark(a, ledger.reads)
    ledger.resolve()
    assert ledger.reads == {("p0", 0), ("p1", 0), ("p2", 0)}


def test_roles_go_to_the_owners_of_the_labels() -> None:
    ledger, (_, b, _) = ledger_with(2, 3, 2)
    ledger.mark(b[1:2].expand(4, 1), ledger.produces)
    assert ledger.produces == {("p1", 0)}
    assert np.array_equal(ledger.resolve()[0], np.arange(8))
