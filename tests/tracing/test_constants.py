"""Folded constants are what the ops give: the walk's values against a real run of the same code."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.utils._pytree import tree_leaves

import npn
from npn._utils.inputs import output_tensors, split_inputs
from npn._utils.models import model_tensors
from npn.errors import TraceError
from npn.tracing.capture.graph import Capture, capture
from npn.tracing.grouping.walk import walk
from npn.tracing.labels import Value

from ..zoo.models_attention import ATTENTION

BOOL, LONG, HALF, BF16, U8 = torch.bool, torch.long, torch.float16, torch.bfloat16, torch.uint8


class Around(nn.Module):
    """One layer, and whatever `f` makes of its output."""

    def __init__(self, f: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.f = nn.Linear(3, 8), f

    def forward(self, x: Tensor) -> Any:
        return self.f(self.stem(x))


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def same(found: Tensor, wanted: Tensor, what: object = "") -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), f"{what}: {found.dtype} {tuple(found.shape)}"
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=0, equal_nan=True, msg=lambda m: f"{what}: {m}")


def known(captured: Capture, tensors: dict[str, Tensor]) -> list[Tensor | None]:
    """What the walk knows of the outputs."""
    values = walk(captured, tensors).values
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    return [values[node].const for node in output.args[0]]


def check_outputs(f: Callable[[Tensor], Any]) -> list[Tensor]:
    """Every output of `f` is a constant, with the dtype, shape and elements that the code gives."""
    model = Around(f).eval()
    wanted = output_tensors(model(X))
    found = known(capture(model, X), model_tensors(model))
    for a, b in zip(found, wanted, strict=True):
        assert a is not None, "not folded"
        same(a, b)
    return wanted


def check_nodes(model: nn.Module, inputs: Any) -> int:
    """Every constant of the walk equals what its op gives when the graph runs on real tensors; how many there are."""
    captured, tensors = capture(model, inputs), model_tensors(model)
    values = {node.name: value for node, value in walk(captured, tensors).values.items()}
    seen = 0

    class Compare(Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            for value, real in zip(tree_leaves(values.get(n.name)), tree_leaves(result), strict=False):
                if isinstance(value, Value) and value.const is not None and isinstance(real, Tensor):
                    nonlocal seen
                    seen += 1
                    same(value.const, real, n)
            return result

    given = tree_leaves((list(tensors.values()), *split_inputs(inputs)))
    with torch.no_grad():
        Compare(GraphModule(captured.constants, captured.graph)).run(*copy.deepcopy(given), enable_io_processing=False)
    return seen


def ids(h: Tensor) -> Tensor:
    return torch.arange(h.shape[0])


def causal(h: Tensor) -> Tensor:
    return torch.full((4, 4), True).tril()


def written(h: Tensor) -> Tensor:
    table = h.new_zeros(6, dtype=LONG)
    table[1:-1] = ids(h) + 0.7
    table[0] = 9
    table[5:].fill_(2.9)
    return table


def counted(h: Tensor) -> Tensor:
    table = torch.zeros(3, dtype=torch.int32)
    table += 1
    table.mul_(torch.tensor([1, 2, 3]))
    return table


def transposed_in_place(h: Tensor) -> Tensor:
    return torch.arange(6).view(2, 3).t_().unsqueeze_(0)


FOLDED: dict[str, Callable[[Tensor], Any]] = {
    # fills
    "zeros_like": lambda h: (torch.zeros_like(h), torch.zeros_like(h, dtype=BOOL), torch.zeros_like(h.long())),
    "ones_like": lambda h: (torch.ones_like(h), torch.ones_like(h, dtype=BOOL), torch.ones_like(h.half())),
    "full_like": lambda h: (torch.full_like(h, 2), torch.full_like(h, True), torch.full_like(h, 2, dtype=BOOL)),
    "full_like_truncates": lambda h: (torch.full_like(h.long(), 2.9), torch.full_like(h.long(), -0.9)),
    "full_like_rounds": lambda h: (torch.full_like(h, 2049, dtype=HALF), torch.full_like(h.to(BF16), 0.1)),
    "full_like_keywords": lambda h: torch.full_like(input=h, fill_value=3, dtype=U8),
    "new_zeros": lambda h: (h.new_zeros(3), h.new_zeros((2, 1), dtype=BOOL), h.long().new_zeros(2)),
    "new_ones": lambda h: (h.new_ones(3), h.new_ones((2, 1), dtype=BOOL), h.double().new_ones(2)),
    "new_full": lambda h: (h.new_full((3,), 7), h.new_full((2,), 1, dtype=BOOL), (h > 0).new_full((2,), 3)),
    "new_full_keywords": lambda h: h.new_full(fill_value=2.5, size=(1, 2), dtype=LONG),
    "new_full_infinite": lambda h: (h.new_full((2,), float("-inf")), h.new_full((), float("nan"))),
    "full": lambda h: (torch.full((2,), True), torch.full((2,), 3), torch.full((2, 1), 3.0), torch.full((), 1 + 2j)),
    "zeros_ones": lambda h: (torch.zeros(3), torch.ones(2, dtype=U8), torch.zeros(len(h), 0), torch.ones(())),
    "scalar_tensor": lambda h: (torch.scalar_tensor(2), torch.scalar_tensor(2, dtype=LONG), torch.tensor(3)),
    "zero_": lambda h: ((h * 1).zero_(), (h > 0).zero_(), torch.empty_like(h, dtype=LONG).zero_()),
    "fill_": lambda h: ((h * 1).fill_(2), h.long().fill_(2.9), h.new_empty(3).fill_(torch.tensor(4))),
    "empty_filled": lambda h: (torch.empty(3).fill_(1), torch.empty_like(h, dtype=BOOL).fill_(5)),
    # ranges and tables
    "arange": lambda h: (torch.arange(4), torch.arange(0, 1, 0.25), torch.arange(4, dtype=HALF), ids(h)),
    "linspace": lambda h: (torch.linspace(0, 1, 5), torch.logspace(0, 1, 3, dtype=torch.float64)),
    "eye": lambda h: (torch.eye(3), torch.eye(2, 3, dtype=BOOL), torch.diag_embed(torch.ones(3))),
    "one_hot": lambda h: F.one_hot(ids(h), 5),
    "sinusoidal": lambda h: torch.polar(torch.ones(4), ids(h) * 0.1).real.to(BF16),
    # logic
    "comparisons": lambda h: (ids(h) > 1, ids(h)[:, None] >= ids(h), ids(h) == torch.ones_like(ids(h)), ids(h).ne(2)),
    "logical": lambda h: (torch.logical_and(ids(h), causal(h)), torch.logical_not(h.new_ones(2)),
                          ids(h).logical_xor(ids(h))),
    "not": lambda h: (~h.new_ones(3, dtype=BOOL), ~h.new_zeros(3, dtype=LONG), ~causal(h)),
    "bitwise": lambda h: (causal(h) & h.new_ones(4, dtype=BOOL), causal(h) | False, ids(h) ^ 1, ids(h) << 1),
    "triangles": lambda h: (causal(h), torch.ones(3, 3).triu(1), torch.full((3, 3), float("-inf")).triu(diagonal=1)),
    "where": lambda h: (torch.where(causal(h), 0.0, -1.0), torch.where(causal(h), ids(h), 1.5)),
    "masked_fill": lambda h: (h.new_zeros(4, 4).masked_fill(~causal(h), -9.0), ids(h).masked_fill(ids(h) > 1, 2)),
    "any_all": lambda h: (causal(h).any(1), causal(h).all(), causal(h).sum(0), causal(h).float().mean()),
    # arithmetic
    "cumsum": lambda h: (h.new_ones(4, dtype=BOOL).cumsum(0) - 1, (~h.new_zeros(3, dtype=BOOL)).cumsum(0),
                         ids(h).cumsum(0)),
    "division": lambda h: (ids(h) / 2, ids(h) // 2, torch.div(ids(h), 2, rounding_mode="trunc"),
                           h.new_full((2,), 3) // 2),
    "overflow": lambda h: (torch.full_like(h, 255, dtype=U8) + 1, -h.new_full((2,), 1, dtype=U8)),
    "bool_sums": lambda h: (causal(h).long() + causal(h), causal(h) * 2, causal(h) + causal(h), causal(h) * 0.5),
    "casts": lambda h: (ids(h).to(h), ids(h).to(HALF) / 3, causal(h).to(h.dtype),
                        h.new_full((2,), 2.9).to(LONG).to(BOOL)),
    "functions": lambda h: (ids(h).exp(), ids(h).sqrt().floor().long(), ids(h).clamp(1, 2),
                            torch.outer(ids(h), ids(h))),
    "reductions": lambda h: (ids(h).max(), ids(h).float().std(), torch.ones(3, 3).norm(dim=1),
                             torch.logsumexp(torch.zeros(3), 0)),
    "sorting": lambda h: (*(-ids(h)).sort(), *ids(h).topk(2), ids(h).flip(0).argsort()),
    "products": lambda h: (torch.ones(2, 3) @ torch.ones(3, 2), torch.outer(ids(h), ids(h)),
                           F.softmax(ids(h) * 0.1, 0)),
    "item": lambda h: (torch.ones(2) * torch.tensor(3).item(), torch.full((2,), torch.tensor(2.5).item(), dtype=LONG)),
    # movement
    "index": lambda h: (ids(h)[torch.tensor([2, 0])], ids(h)[ids(h).flip(0)], causal(h)[:, None, ids(h)], ids(h)[-1]),
    "gather": lambda h: (torch.eye(4).gather(1, ids(h)[:, None]),
                         ids(h).index_select(0, (~h.new_ones(2, dtype=BOOL)).long())),
    "positions": lambda h: F.embedding(ids(h), torch.arange(12).view(4, 3) * 0.5),
    "views": lambda h: (h.new_ones(2, 6).view(3, 4), (h.new_ones(2, 3) + h.new_ones(3)).t().reshape(-1),
                        ids(h).expand(2, 4).flatten()),
    "as_strided": lambda h: (h.new_ones(2, 6).as_strided((3,), (2,)),
                             torch.arange(12).view(3, 4).t().as_strided((2, 2), (1, 3), 1)),
    "joined": lambda h: (torch.cat([h.new_ones(2, dtype=BOOL), causal(h)[0]]), torch.stack([ids(h), ids(h)]),
                         torch.cat([ids(h), h.new_ones(1)])),
    "padded": lambda h: (F.pad(causal(h), (1, 0), value=True), F.pad(ids(h), (1, 1), value=-1), ids(h).roll(1)),
    "repeated": lambda h: (ids(h).repeat(2, 1), ids(h).repeat_interleave(2), ids(h).unfold(0, 2, 1),
                           causal(h).chunk(2)[1]),
    "in_place": lambda h: (written(h), counted(h), transposed_in_place(h)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_a_constant_is_what_the_code_gives(name: str) -> None:
    check_outputs(FOLDED[name])
    assert check_nodes(Around(FOLDED[name]).eval(), X) > 0


@pytest.mark.parametrize("name", ATTENTION)
def test_constants_of_models_are_what_their_ops_give(name: str) -> None:
    torch.manual_seed(0)
    entry = ATTENTION[name]
    check_nodes(entry.make().eval(), entry.inputs())


# -- random chains

DTYPES = (BOOL, U8, torch.int32, LONG, HALF, BF16, torch.float32, torch.float64)
STARTS: list[Callable[[Tensor, float, torch.dtype], Tensor]] = [
    lambda h, n, d: h.new_full((2, 3), n, dtype=d),
    lambda h, n, d: torch.full_like(h[:2, :3], n, dtype=d),
    lambda h, n, d: torch.zeros_like(h[:2, :3], dtype=d),
    lambda h, n, d: h.new_ones(2, 3, dtype=d),
    lambda h, n, d: torch.arange(6, dtype=d).view(2, 3),
    lambda h, n, d: torch.tensor([[n, 0, 1], [2, -n, 3]]).to(d),
]
STEPS: list[Callable[[Tensor, Tensor, float], Tensor]] = [
    lambda a, b, n: ~a,
    lambda a, b, n: -a,
    lambda a, b, n: a + b,
    lambda a, b, n: a * b,
    lambda a, b, n: a / 2,
    lambda a, b, n: a // 2,
    lambda a, b, n: a + n,
    lambda a, b, n: a & b,
    lambda a, b, n: a > b,
    lambda a, b, n: a == n,
    lambda a, b, n: torch.where(a > 0, a, b),
    lambda a, b, n: torch.where(b.bool(), a, n),
    lambda a, b, n: a.masked_fill(b > 0, n),
    lambda a, b, n: a.cumsum(1),
    lambda a, b, n: a.tril(),
    lambda a, b, n: a.triu(1),
    lambda a, b, n: a.logical_not(),
    lambda a, b, n: a.to(b.dtype),
    lambda a, b, n: a.long(),
    lambda a, b, n: a.bool(),
    lambda a, b, n: a[:, torch.tensor([2, 0, 1])],
    lambda a, b, n: a[(b > 0).long()[:, 0]],
    lambda a, b, n: a.gather(1, b.long().remainder(3)),
    lambda a, b, n: a.flip(1).roll(1, 0),
    lambda a, b, n: torch.cat([a, b], 1)[:, ::2],
    lambda a, b, n: a.view(-1).view(2, 3),
    lambda a, b, n: a.sum(1, keepdim=True).expand(2, 3),
    lambda a, b, n: torch.full_like(a, n),
    lambda a, b, n: torch.ones_like(b, dtype=a.dtype),
    lambda a, b, n: a.new_full((2, 3), n),
    lambda a, b, n: a.clone().fill_(n),
    lambda a, b, n: a.clone().zero_() + b,
    lambda a, b, n: F.embedding(a.long().remainder(4), torch.arange(12.0).view(4, 3))[..., 0],
]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_chains_of_constants_are_what_the_code_gives(data: st.DataObject) -> None:
    number = st.sampled_from([0, 1, 2, -1, 0.9, 2.5, 255, 300, True])
    starts = data.draw(
        st.lists(st.tuples(st.sampled_from(STARTS), number, st.sampled_from(DTYPES)), min_size=2, max_size=3)
    )
    index = st.integers(0, 9)
    steps = data.draw(st.lists(st.tuples(st.sampled_from(STEPS), index, index, number), min_size=1, max_size=6))
    kept: list[Any] | None = None

    def run(h: Tensor) -> list[Tensor]:
        nonlocal kept
        found: list[Tensor] = []
        taken = []
        for step in kept if kept is not None else [*starts, *steps]:
            try:  # a step that PyTorch refuses for these dtypes is left out, in the trace as well
                if len(step) == 3:
                    found.append(step[0](h, *step[1:]))
                elif found:
                    a, b = (found[i % len(found)] for i in step[1:3])
                    found.append(step[0](a, b, step[3]))
                taken.append(step)
            except (RuntimeError, TypeError, IndexError):
                if kept is not None:
                    raise
        kept = taken
        return found

    check_outputs(run)


# -- what could have gone wrong in silence


def test_the_complement_of_a_mask_is_a_mask() -> None:
    mask, count, below = check_outputs(
        lambda h: (
            ~h.new_ones(4, dtype=BOOL),  # -2 as integers
            (~torch.zeros_like(h[:, 0], dtype=BOOL)).cumsum(0),  # -1, -2, ... as integers
            torch.full_like(h[0], 256, dtype=BOOL).to(U8),  # 0 as integers
        )
    )
    assert mask.tolist() == [False] * 4
    assert count.tolist() == [1, 2, 3, 4]
    assert below.tolist() == [1] * 8


def moved(f: Callable[[Tensor], Tensor]) -> list[int]:
    """Which unit of the stem each column of the output is, 0 for none."""
    model = Around(f).eval()
    captured = capture(model, X)
    values = walk(captured, model_tensors(model)).values
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    first = {
        n.name: v for n, v in values.items() if n.op == "call_function" and n.target is torch.ops.aten.addmm.default
    }
    (stem,) = first.values()
    order = {0: 0} | {int(label): i + 1 for i, label in enumerate(stem.parts[0].labels[0])}
    parts = values[output.args[0][0]].parts
    return [order[int(label)] for label in parts[0].labels[0]] if parts else []


@pytest.mark.parametrize(
    ("f", "wanted"),
    [
        (lambda h: h[:, (~h.new_zeros(8, dtype=BOOL)).cumsum(0) - 1], [1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda h: F.pad(h, (1, 0))[:, (~h.new_zeros(8, dtype=BOOL)).cumsum(0)], [1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda h: h[:, (~h.new_ones(8, dtype=BOOL)).long() + torch.arange(8)], [1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda h: h[:, torch.full_like(h[0], 2, dtype=BOOL).long() * torch.arange(8)], [1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda h: h[:, torch.full_like(h[0].long(), 0.9) + torch.arange(8)], [1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda h: h[:, (torch.full_like(h[0], 255, dtype=U8) + 3).long()], [3] * 8),
        (lambda h: h[:, torch.where(~h.new_ones(8, dtype=BOOL), 0, 7 - torch.arange(8))], [8, 7, 6, 5, 4, 3, 2, 1]),
        (lambda h: h.t().as_strided((8, 4), (1, 8)).t(), [1, 2, 3, 4, 5, 6, 7, 8]),
        (lambda h: h.as_strided((4, 2), (8, 4), 1), [2, 6]),
        (lambda h: h[:, 2:].as_strided((4, 2), (8, 3), 3), [4, 7]),
    ],
)  # fmt: skip
def test_what_is_picked_by_a_constant_keeps_its_own_unit(f: Callable[[Tensor], Tensor], wanted: list[int]) -> None:
    model = Around(f).eval()
    with torch.no_grad():
        model.stem.weight.zero_(), model.stem.bias.copy_(torch.arange(1, 9))
        assert model(X)[0].tolist() == wanted
    assert moved(f) == wanted


def test_as_strided_that_leaves_its_input_is_no_guess() -> None:
    assert moved(lambda h: h[:, 2:].as_strided((4, 2), (8, 1), 0)) == []


def test_indexing_by_a_constant_mask() -> None:
    """Code that does so cannot be captured on fake tensors, but a graph may hold it."""
    model = Around(lambda h: (torch.arange(8) % 3 > 0, h))
    captured = capture(model, X)
    graph = captured.graph
    (output,) = (n for n in graph.nodes if n.op == "output")
    mask, h = output.args[0]
    with graph.inserting_before(output):
        picked = graph.call_function(torch.ops.aten.index.Tensor, (h, [None, mask]))
        itself = graph.call_function(torch.ops.aten.index.Tensor, (mask, [mask]))
    output.args = ((mask, h, picked, itself),)  # what nothing uses is not looked at
    picked.meta["val"], itself.meta["val"] = torch.empty(4, 5), torch.empty(5, dtype=BOOL)
    values = walk(captured, model_tensors(model)).values
    assert values[itself].const.tolist() == [True] * 5
    assert values[picked].parts[0].labels[0].tolist() == values[h].parts[0].labels[0, [1, 2, 4, 5, 7]].tolist()


def test_a_constant_of_another_dtype_than_captured_is_an_error() -> None:
    model = Around(lambda h: (torch.arange(4) + 1, h))
    captured = capture(model, X)
    (add,) = (n for n in captured.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    for wrong in (torch.empty(4, dtype=torch.int32), torch.empty(5, dtype=LONG)):
        add.meta["val"] = wrong
        with pytest.raises(TraceError, match=r"add at .*: expected a constant of torch.int.* got torch.int64 \(4,\); "):
            walk(captured, model_tensors(model))


def test_autocast_around_attach_does_not_change_constants() -> None:
    def f(h: Tensor) -> Any:
        return torch.arange(4.0)[:, None] @ torch.arange(4.0)[None], torch.ones(2) @ torch.ones(2)

    model = Around(f).eval()
    with torch.autocast("cpu", torch.bfloat16):
        for found, wanted in zip(known(capture(model, X), model_tensors(model)), f(X), strict=True):
            assert found is not None
            same(found, wanted)
    assert found.dtype == BF16


def test_attach_leaves_a_tensor_that_the_code_counts_in() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.calls = nn.Linear(3, 8), nn.Linear(8, 2), torch.full((2,), 5.0)

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.b(torch.tanh(self.a(x))) + self.calls.clone() * 2

    model = Counts()
    captured = capture(model, X)
    assert model.calls.tolist() == [5, 5]
    values = walk(captured, model_tensors(model)).values
    assert [v.const.tolist() for n, v in values.items() if n.name.startswith("mul")] == [[12.0, 12.0]]
    calls = model.calls
    plastic = npn.attach(model, X)
    assert [g.size for g in plastic.groups] == [8]
    assert model.calls is calls and calls.tolist() == [5, 5]
