"""The recorded graph is the one that `make_fx` makes: the same ops in the same order, with the same shapes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.flex_attention import flex_attention

from npn.tracing.capture.deadline import Deadline
from npn.tracing.capture.environment import cast_anew
from npn.tracing.capture.graph import capture
from npn.tracing.capture.recorder import Recorder
from npn.tracing.trace import trace_units

from .asking import reasons, sizes

TABLE = torch.randn(5, 3)  # neither parameter nor buffer


def adds_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] += 1
    y.mul_(2).transpose_(0, 1)
    return y @ torch.ones(4, 1)


def constants(x: Tensor) -> Tensor:
    scale = torch.tensor(3.0)
    scale.add_(1)
    mask = torch.tensor([[True, False, True, True, False]]).any(0)
    return x * scale.item() + TABLE.sum() + TABLE.mean() + torch.tensor([1.0, 2, 3, 4]) + mask.sum()


def several(x: Tensor) -> list[Tensor]:
    a, b = x.split([1, 3], dim=1)
    values, places = x.max(1)
    return [*torch.var_mean(b, dim=0), a, values, places, *F.adaptive_max_pool1d(x, 2, return_indices=True)]


def attends(x: Tensor) -> Tensor:
    q = x.reshape(1, 2, 2, 4)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True)


def scored(x: Tensor) -> Tensor:
    q = x.reshape(1, 1, 4, 4)
    return flex_attention(q, q, q, score_mod=lambda score, *place: score * 2)


@torch.inference_mode()
def in_inference_mode(x: Tensor) -> Tensor:
    return F.linear(x.reshape(2, 8), torch.ones(3, 8)).chunk(3, 1)[1]


def in_lower_precision(x: Tensor) -> Tensor:
    weight = torch.ones(4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ weight + x @ weight


CASES: dict[str, Callable[[Tensor], Any]] = {
    "in place": adds_in_place,
    "constants": constants,
    "several results": several,
    "attention": attends,
    "inference mode": in_inference_mode,
    "autocast": in_lower_precision,
    "complex": lambda x: torch.view_as_real(torch.fft.rfft(x)),
    "random": lambda x: F.dropout(x, 0.5) + torch.randn_like(x).clamp_min_(0),
    "nothing": lambda x: torch.ones(2),
}


def recorded(f: Callable[[Tensor], Any], mode: FakeTensorMode, x: Tensor) -> tuple[Graph, dict[str, Tensor]]:
    recorder = Recorder(Deadline(math.inf))
    recorder.take([x])
    with torch.compiler.set_stance("force_eager"), cast_anew(), mode, recorder:
        result = torch.func.functionalize(f)(x)
    recorder.give(result if isinstance(result, list) else [result])
    return recorder.graph, recorder.constants


def described(graph: Graph) -> list[Any]:
    """What each node computes, from which nodes, and the shapes of its results; `make_fx` reads constants unseen."""
    nodes = [node for node in graph.nodes if node.target is not torch.ops.aten._local_scalar_dense.default]
    number = {node: i for i, node in enumerate(nodes)}
    found = []
    for node in nodes:
        value = node.meta.get("val")
        results = value if isinstance(value, (tuple, list)) else [value]
        shapes = [(t.shape, t.dtype) for t in results if isinstance(t, Tensor)]
        target = node.target if node.op == "call_function" else node.op
        found.append((target, [number[other] for other in node.all_input_nodes], shapes))
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_graph_is_that_of_make_fx(name: str) -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    x = mode.from_tensor(torch.randn(4, 4))
    ours, constants = recorded(CASES[name], mode, x)
    with mode:
        theirs = make_fx(torch.func.functionalize(CASES[name]))(x)
    assert described(ours) == described(theirs.graph)
    used = [[n.target for n in graph.nodes if n.op == "get_attr"] for graph in (ours, theirs.graph)]
    for a, b in zip(*used, strict=True):
        assert torch.equal(constants[a], getattr(theirs, b))


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.LSTM(4, 3), nn.TransformerEncoderLayer(4, 2, 8)])
def test_the_graph_computes_what_the_model_does(layer: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), layer).eval(), torch.randn(5, 2, 3)
    x = x[:, 0] if isinstance(layer, nn.BatchNorm1d) else x
    captured = capture(model, x)
    state = model.state_dict(keep_vars=True)
    found = GraphModule(captured.constants, captured.graph)(*(state[name] for name in captured.names), x)
    expected = model(x)
    torch.testing.assert_close(found[0], expected[0] if isinstance(expected, tuple) else expected)


def test_an_op_with_a_kernel_is_not_taken_apart() -> None:
    """`make_fx` of torch 2.9 does so, and then nobody can say where the units are."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    enlarged = recorded(
        lambda x: F.interpolate(x[None, None], scale_factor=2), mode, mode.from_tensor(torch.ones(4, 4))
    )
    assert torch.ops.aten.upsample_nearest2d.default in [node.target for node in enlarged[0].nodes]


def test_a_higher_order_op_is_one_node() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph, _ = recorded(scored, mode, mode.from_tensor(torch.randn(4, 4)))
    (node,) = (n for n in graph.nodes if getattr(n.target, "__name__", "") == "flex_attention")
    assert [n.meta["val"].shape for n in node.args[:3]] == [(1, 1, 4, 4)] * 3


def test_shapes_of_results_are_those_before_an_op_in_place() -> None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph, _ = recorded(lambda x: (x[:, :2] + 1).t_().unsqueeze_(0), mode, mode.from_tensor(torch.randn(4, 4)))
    shapes = {node.name: tuple(node.meta["val"].shape) for node in graph.nodes if node.op == "call_function"}
    assert shapes["add"] == (4, 2)
    assert tuple(list(graph.nodes)[-2].meta["val"].shape) == (1, 2, 4)


def test_a_parameter_that_the_forward_pass_makes_has_no_units() -> None:
    class Remade(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(torch.relu(self.inner(x * nn.Linear(4, 1).weight)))

    structure = trace_units(Remade(), torch.zeros(2, 3))
    assert sizes(structure) == {"inner": 4}
    assert "combined with a value of fixed size" in reasons(structure, "stem.weight", 0)
