"""Forward passes that decide by values of their inputs: the example inputs decide, a warning says where."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import npn
from npn.errors import TraceError
from npn.tracing.capture.known_values import KnownValues

from ..zoo.checks import check_grow, check_shrink

ROWS = 5
X, MASK = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0, 1, 1, 0]).bool()


class Net(nn.Module):
    """Two layers, a function of what is between them and of a mask, a third layer."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.code = code

    def forward(self, x, mask):
        return self.c(self.code(self, torch.tanh(self.a(x)), mask))


HERE = Path(__file__).name
LINE = f"{HERE}:{Net.forward.__code__.co_firstlineno + 1}"  # of the forward pass that calls the function


def branch(net, h, mask):
    return h + torch.tanh(net.b(h)) if mask.any() else h


def count(net, h, mask):
    for _ in range(int(mask.sum())):
        h = h * 1.5
    return h


def rows(net, h, mask):
    return h[mask]


def some_rows_only(net, h, mask):
    y = torch.zeros_like(h)
    y[mask] = torch.tanh(net.b(h[mask]))
    return h + y


def places(net, h, mask):
    return h[mask.nonzero()[:, 0]] + h[torch.where(mask)[0].flip(0)]


def entries(net, h, mask):
    """A mask over two axes, of which one is that of the units' rows."""
    return h.unflatten(0, (1, ROWS))[mask[None]]


def beside_an_index(net, h, mask):
    return h[None].expand(2, ROWS, -1)[torch.zeros(3, dtype=torch.long), mask]


def lengths(net, h, mask):
    return h[: mask.sum().item()].cumsum(0)


def listed(net, h, mask):
    return torch.stack([h[i, :] * k for i, (k,) in enumerate(mask[:, None].tolist()) if k])


def as_array(net, h, mask):
    return h[torch.as_tensor(np.flatnonzero(mask[None].cpu().numpy()[0]))]


def written_in_place(net, h, mask):
    kept = torch.zeros_like(mask)
    kept |= mask
    kept ^= False
    return h[kept]


CODES = [
    branch, count, rows, some_rows_only, places, entries, beside_an_index, lengths, listed, as_array, written_in_place,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:b.weight, b.bias take no part")
@pytest.mark.parametrize("code", CODES, ids=lambda f: f.__name__)
def test_units_come_and_go(code):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="^the forward pass decides by values of its inputs at test_known_values.py:"):
        plastic = npn.attach(Net(code), (X, MASK))
    assert {group.name: group.size for group in plastic.groups if group.name != "b"} == {"a": 8}
    assert npn.count_macs(plastic.model, (X, MASK)) > 0
    second = copy.deepcopy(plastic)
    check_shrink(plastic, (X, MASK))
    check_grow(second, (X, MASK))


@pytest.mark.filterwarnings("ignore:b.weight, b.bias take no part")
def test_inputs_may_lie_in_memory_as_they_like():
    wide = torch.zeros(ROWS + 1, 3, dtype=torch.bool)
    mask = wide[1:, 0].copy_(MASK)
    assert (mask.stride(), mask.storage_offset()) == ((3,), 3)

    def padded(net, h, mask):
        return h[mask.as_strided((ROWS,), mask.stride(), mask.storage_offset())]

    for code in (rows, padded):
        with pytest.warns(UserWarning, match="decides by values"):
            plastic = npn.attach(Net(code), (X, mask))
        check_shrink(plastic, (X, mask))


def test_the_warning_names_the_lines():
    class Twice(Net):
        def forward(self, x, mask):
            h = torch.tanh(self.b(torch.tanh(self.a(x))))
            h = h * 2 if mask.all() else h
            return self.c(h[mask])

    first = Twice.forward.__code__.co_firstlineno
    message = (
        f"the forward pass decides by values of its inputs at {HERE}:{first + 2}, {HERE}:{first + 3}: what was found "
        "holds for inputs that decide as example_inputs do; others have to use the weights in the same way"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        npn.attach(Twice(None), (X, MASK))
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_mask_over_units_keeps_them():
    def code(net, h, mask):
        return torch.tanh(net.b(h * h[:, mask].sum(1, keepdim=True)))

    with pytest.warns(UserWarning, match="decides by values"):
        plastic = npn.attach(Net(code), (X, torch.ones(8).bool()))
    assert [group.name for group in plastic.groups] == ["b"]
    reasons = [frozen.reason for frozen in plastic.frozen if ("a.weight", 0) in frozen.slots]
    assert set(reasons) == {f"picked by the input at {LINE}"}


def test_a_mask_of_bytes_is_refused_with_the_way_out():
    line = f"{HERE}:{rows.__code__.co_firstlineno + 1}"
    message = rf"^an index at {line} is of a dtype .*; write x\[mask.bool\(\)\] where it is a mask of uint8, "
    with pytest.raises(TraceError, match=message):
        npn.attach(Net(rows), (X, MASK.byte()))


def test_what_a_weight_has_computed_decides_nothing():
    for code in (
        lambda net, h, mask: h.split(h[:, 0].long().tolist()),
        lambda net, h, mask: h * float(h.detach().numpy().mean()),
        lambda net, h, mask: -h if h.sum() > 0 else h,
    ):
        with pytest.raises(TraceError, match="which a traced graph cannot follow"):
            npn.attach(Net(code), (X, MASK))


def test_a_weight_that_example_inputs_leave_nothing_to_do_is_refused():
    message = (
        "the forward pass decides by values of its inputs, and example_inputs leave a weight nothing to do at "
        f"{LINE}; give example_inputs for which every part "
        "of the model has work"
    )
    with pytest.raises(TraceError, match=f"^{re.escape(message)}$"):
        npn.attach(Net(some_rows_only), (X, torch.zeros(ROWS).bool()))


def test_a_weight_that_gets_no_rows_is_refused_whatever_the_reason():
    def none(net, h, mask):
        return torch.cat([h, torch.tanh(net.b(h[(h > 9).any(-1).nonzero()[:0, 0]]))])

    message = (
        f"example_inputs leave a weight nothing to do at {LINE}; give example_inputs for which every part of the model "
        "has work"
    )
    for code, x in ((none, X), (rows, X[:0])):
        with pytest.raises(TraceError, match=f"^{re.escape(message)}$"):
            npn.attach(Net(code), (x, MASK[: len(x)]))


def no_places(net, h, mask):
    places = mask.nonzero()[:, 0]
    return h + torch.tanh(net.b(h)) if len(places) else h


def as_many_as_chosen(net, h, mask):
    for _ in range(len((net.c(h)[:, 0] > 0).nonzero()) - 3):
        h = h + torch.tanh(net.b(h))
    return h


@pytest.mark.parametrize("code", [branch, no_places, as_many_as_chosen], ids=lambda f: f.__name__)
def test_a_weight_that_is_left_out_by_values_is_named(code):
    message = (
        f"b.weight, b.bias take no part in the forward pass on example_inputs, which decides by values at {LINE}: if "
        "other inputs use them, neither gates nor resizes reach what they read; give example_inputs for which every "
        "part of the model has work"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        npn.attach(Net(code), (X, torch.zeros(ROWS).bool()))
    assert all(each.filename == __file__ for each in caught)
    if code is not as_many_as_chosen:
        with pytest.warns(UserWarning, match="decides by values") as caught:
            npn.attach(Net(code), (X, MASK))
        assert len(caught) == 1


def test_norms_are_not_followed_where_their_calls_depend_on_values():
    class Normed(Net):
        def __init__(self):
            super().__init__(lambda net, h, mask: net.norm(h) if mask.any() else h)
            self.norm = nn.LayerNorm(8)

    message = f"streams=True follows norms in the order of their calls, which values of the inputs may change at {LINE}"
    with pytest.raises(TraceError, match=f"^{re.escape(message)}; attach without streams=True$"):
        npn.attach(Normed(), (X, MASK), streams=True)


def test_only_what_follows_from_inputs_is_known():
    mode, before = KnownValues(), MASK.clone()
    mask, weight = mode.from_input(MASK), mode.from_tensor(torch.ones(ROWS))
    with mode:
        assert mask.sum().item() == 3 and torch.arange(4)[mask[:4]].tolist() == [0, 2, 3]
        assert torch.zeros(3).sum().item() == 0.0
        written, flags = torch.zeros(3), torch.zeros(4)
        view = written[1:]
        written.add_(weight[:3])
        flags[1:].fill_(1.0)
        assert flags.sum().item() == 3.0
        for unknown in (
            weight.sum(),
            (mask * weight).sum(),
            torch.rand(3).sum(),
            torch.empty(3).sum(),
            written.sum(),
            view.sum(),
        ):
            with pytest.raises(Exception, match="local_scalar_dense"):
                unknown.item()
        mask.zero_()
        assert not mask.any()
    assert torch.equal(MASK, before)


class Experts(nn.Module):
    """Three experts, of which a router chooses two for each row; each works on the rows that chose it."""

    def __init__(self, mask, asks=False):
        super().__init__()
        self.a, self.router, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8)) for _ in range(3))
        self.mask, self.asks = mask, asks

    def forward(self, x):
        h = torch.tanh(self.a(x))
        weights, chosen = self.router(h).softmax(-1).topk(2)
        y = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            if self.mask:
                mine = (chosen == number).any(-1)
                if not self.asks or (mine.any() and mine.sum() > 0):
                    y[mine] += expert(h[mine])
            else:
                rows, slot = torch.where(chosen == number)
                if len(rows):
                    y.index_add_(0, rows, expert(h[rows]) * weights[rows, slot, None])
        return self.c(h + y)


@pytest.mark.parametrize(("mask", "asks"), [(True, False), (True, True), (False, False)])
def test_experts_that_work_on_the_rows_that_chose_them(mask, asks):
    torch.manual_seed(0)
    x = torch.randn(12, 4)
    with pytest.warns(
        UserWarning, match="^the forward pass picks rows by values that it computes itself at test_known"
    ):
        plastic = npn.attach(Experts(mask, asks), x)
    model = plastic.model
    assert plastic.sizes() == {"a": 8, **{f"experts.{i}.0": 6 for i in range(3)}}
    rows = 12 * 2  # every row chooses two of the experts
    assert npn.count_macs(model, x) == 12 * (4 * 8 + 8 * 3 + 8 * 2) + rows * (8 * 6 + 6 * 8)
    half = 3 * 12 // 2 if mask else 3 * 24 // 2  # of the places of each expert's mask
    assert plastic.full_cost("macs") == 12 * (4 * 8 + 8 * 3 + 8 * 2) + half * (8 * 6 + 6 * 8)
    second = copy.deepcopy(plastic)
    check_shrink(plastic, x)
    check_grow(second, x)


class Alone(Experts):
    """The experts' sum has the width of what they read by its shape alone; the input and a buffer are written into."""

    def __init__(self, mask):
        super().__init__(mask)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        h = torch.tanh(self.a(self.norm(x.mul_(2.0))))
        chosen = self.router(h).argmax(-1)
        y = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            y[chosen == number] = expert(h[chosen == number])
        return self.c(y)


def test_sizes_that_rows_of_experts_fix_name_the_reason_and_nothing_is_written_into():
    torch.manual_seed(0)
    x, model = torch.randn(12, 4), Alone(True)
    before, state, random = x.clone(), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.warns(UserWarning, match="picks rows by values"):
        plastic = npn.attach(model, x)
    assert plastic.sizes() == {f"experts.{i}.0": 6 for i in range(3)}
    (reason,) = (frozen.reason for frozen in plastic.frozen if ("a.weight", 0) in frozen.slots)
    assert re.match(r"the code fixes this size at test_known_values\.py:\d+: .*12, 7\] X \[8, 2\]", reason)
    assert npn.count_macs(plastic.model, x) == 12 * (4 * 8 + 8 * 3 + 8 * 2) + 12 * (8 * 6 + 6 * 8)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_first_reason_is_told_where_half_of_the_rows_fails():
    def rows_of_pairs(net, h, mask):
        return h[h[:, 0] > -9].reshape(ROWS, -1, 8)[:, 0]

    with pytest.raises(TraceError, match=r"^the shape of a tensor depends on values at test_known_values\.py"):
        npn.attach(Net(rows_of_pairs), (X, MASK))


def test_a_path_that_nothing_but_computed_values_decides_is_told():
    message = (
        f"the forward pass decides by values that it computes itself at {LINE}, and half of them were assumed to hold: "
        "what was found holds for passes in which some do; others have to use the weights in the same way"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        npn.attach(Net(lambda net, h, mask: torch.tanh(net.b(h)) if (h > 9).any() else h), (X, MASK))
