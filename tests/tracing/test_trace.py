"""Tracing a module: reasons, side effects, sharing, errors."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import npn
from npn.tracing import trace
from npn.tracing.capture.graph import capture

from .asking import reasons, sizes

HERE = Path(__file__).name


def line_of(text: str) -> int:
    """Line of this file on which a marker comment stands."""
    return 1 + next(i for i, line in enumerate(Path(__file__).read_text().splitlines()) if line.endswith(f"# {text}"))


# -- reasons


class Reasons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 2)
        self.table = nn.Embedding(5, 6)

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        h = self.a(x) + self.table(i)  # rows
        h = self.b(torch.block_diag(h))  # unknown
        h = self.c(h.view(-1, 8))  # hard-coded
        return self.d(h.softmax(1))  # mixing


def test_reasons_name_the_op_and_the_users_line() -> None:
    structure = trace(Reasons(), (torch.randn(4, 3), torch.arange(4)))
    assert sizes(structure) == {}
    assert reasons(structure, "a.weight", 0) == f"no rule for block_diag, called at {HERE}:{line_of('unknown')}"
    assert f"the code fixes this size at {HERE}:{line_of('hard-coded')}: shape" in reasons(structure, "b.weight", 0)
    assert reasons(structure, "c.weight", 0) == f"_softmax mixes every unit of the axis at {HERE}:{line_of('mixing')}"
    assert reasons(structure, "d.weight", 0) == "it is the model's output"
    assert reasons(structure, "table.weight", 0) == f"rows of the embedding at {HERE}:{line_of('rows')}"
    assert f"input of fixed size at {HERE}:{line_of('rows')}" in reasons(structure, "a.weight", 1)


class Higher(nn.Module):
    """Ops that hold a graph of their own: of the user's values, and of constants alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.kind == "flex":
            q = h.view(2, 16, 2, 4).transpose(1, 2)
            h = flex_attention(q, q, q, score_mod=lambda s, b, h, i, j: s + i - j).transpose(1, 2).flatten(2)  # flex
        elif self.kind == "cond":
            h = torch.cond(x.sum() > 0, lambda z: z * 2, lambda z: z * 3, (h,))  # cond
        else:
            h = h * torch.cond(torch.ones(()) > 0, lambda z: z + 1, lambda z: z + 2, (torch.arange(8.0),))  # constant
        return self.d(torch.tanh(self.c(torch.tanh(self.b(h)))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flex", "cond", "constant"])
def test_ops_that_hold_a_graph_freeze_what_they_touch_and_name_the_line(kind: str) -> None:
    structure = trace(Higher(kind).eval(), torch.randn(2, 16, 8))
    assert sizes(structure) == {"b": 6, "c": 5}
    assert reasons(structure, "a.weight", 0).endswith(f" at {HERE}:{line_of(kind)}")


def test_multi_head_attention_is_frozen_by_its_own_code_and_its_mlp_is_not() -> None:
    structure = trace(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), torch.randn(2, 4, 8))
    assert sizes(structure) == {"linear1": 12}
    assert "multi_head_attention_forward" in reasons(structure, "self_attn.in_proj_weight", 0)


def test_nothing_resizable_is_said_with_reasons() -> None:
    with pytest.raises(
        npn.PlasticityError, match=r"nothing in the model can be resized: weight\[0\]: it is the model's"
    ):
        npn.attach(nn.Linear(3, 2), torch.randn(4, 3))


class Shuffled(nn.Module):
    """Four layers whose units one line mixes, and one that is read whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.last = nn.ModuleList(nn.Linear(3, 4) for _ in range(5)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        *mixed, whole = [layer(x) for layer in self.layers]
        return self.last(torch.stack(mixed).softmax(-1).sum(0)) * whole.argmax()


def test_reasons_are_told_once_and_those_of_every_model_last() -> None:
    first = r"layers\.0\.weight\[0\]: _softmax mixes every unit of the axis at test_trace\.py:\d+; "
    second = r"layers\.4\.weight\[0\]: argmax mixes every unit of the axis at test_trace\.py:\d+; "
    last = r"last\.weight\[0\]: it is the model's output; layers\.0\.weight\[1\].* and 2 more: it reads an input"
    with pytest.raises(npn.PlasticityError, match=f"^nothing in the model can be resized: {first}{second}{last}"):
        npn.attach(Shuffled(), torch.randn(4, 3))


def test_a_dict_is_taken_for_keyword_arguments() -> None:
    class Batch(nn.Linear):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return super().forward(batch["x"])

    with pytest.raises(npn.PlasticityError, match=r"argument 'x'; .* are keyword arguments: give \(batch,\) where"):
        npn.attach(Batch(3, 2), {"x": torch.randn(4, 3)})


@pytest.mark.parametrize("batch", [tuple, list])
def test_a_batch_with_its_targets_is_told_from_inputs(batch):
    loaded = batch([torch.randn(2, 4), torch.zeros(2)])
    with pytest.raises(npn.PlasticityError, match=r"were given; .*of a batch \(x, y\) with its targets give x$"):
        trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), loaded)


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if h.sum() > 0:  # decision
            h = -h
        return self.b(h)


def test_data_dependent_control_flow_names_the_line() -> None:
    pattern = f"decides by the value of a tensor at {HERE}:{line_of('decision')}.*torch.where"
    with pytest.raises(npn.PlasticityError, match=pattern):
        trace(Decides(), torch.randn(2, 3))


def test_wrong_inputs_name_the_line() -> None:
    with pytest.raises(npn.PlasticityError, match="example_inputs is missing"):
        trace(Decides(), None)
    pattern = rf"failed on example_inputs at {HERE}:{line_of('rows')}"
    with pytest.raises(npn.PlasticityError, match=pattern):
        trace(Reasons(), (torch.randn(4, 5), torch.arange(4)))


def test_channels_coupled_into_one_unit_are_counted() -> None:
    class Rolled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            h = self[0](x)
            h = h + h.roll(1, -1)  # rolled
            return self[2](self[1](h))  # type: ignore[no-any-return]

    structure = trace(Rolled(nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)), torch.randn(4, 3))
    reasons = {f.name: f.reason for f in structure.frozen}
    assert [g.name for g in structure.groups] == ["1"]
    coupled = "the code couples its 6 channels into one unit, which has to stay"
    assert (
        reasons["0.weight[0]"] == f"{coupled}: different units meet in an elementwise op at {HERE}:{line_of('rolled')}"
    )


def test_what_couples_the_channels_of_a_constrained_weight_is_named() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
    structure = trace(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 2)), torch.randn(4, 3))
    reason = next(f.reason for f in structure.frozen if ("2.parametrizations.weight.original", 0) in f.slots)
    coupled = "the code couples its 5 channels into one unit, which has to stay"
    assert reason.startswith(f"{coupled}: linalg_vector_norm mixes every unit of the axis at parametrizations.py:")


@pytest.mark.parametrize("apply", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_the_outputs_of_a_spectral_norm_stay_in_eval_mode_too(apply: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), apply(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 2)).eval()
    assert [group.name for group in trace(model, torch.randn(4, 3)).groups] == ["0"]


@pytest.mark.parametrize(
    "total",
    [
        lambda m: m[0].bias.sum(),
        lambda m: m[1].weight.abs().sum(),  # the price of network slimming
        lambda m: m[1].running_var.sum(),
        lambda m: (m[1].running_mean * m[0].weight.sum(1)).sum(),
        lambda m: torch.dot(m[1].bias, m[0].weight[:, 0]),
    ],
    ids=["bias", "scale", "buffer", "product", "dot"],
)
def test_a_sum_over_what_no_gate_masks_couples_the_units(total: Callable[[nn.Sequential], Tensor]) -> None:
    class Summed(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), total(self)

    structure = trace(Summed(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(4, 3))
    assert structure.groups == ()
    assert any("mixes every unit" in frozen.reason for frozen in structure.frozen if ("3.weight", 1) in frozen.slots)


def test_a_sum_over_weights_that_gates_mask_leaves_the_units_apart() -> None:
    class Summed(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), self[2].weight.norm()  # type: ignore[operator]

    structure = trace(Summed(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(4, 3))
    assert [(group.name, group.size) for group in structure.groups] == [("0", 6)]


# -- side effects


class Busy(nn.Module):
    """Counts, caches, draws, updates buffers by itself and lets a hook write to a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.register_buffer("seen", torch.zeros(6))
        self.calls, self.cache, self.record = 0, {"x": 1}, [1, 2]
        self.drop = nn.Dropout(0.5)
        self.hooked: list[int] = []
        hooked = self.hooked
        seen: list[int] = []
        self.a.register_forward_hook(lambda m, i, o: seen.append(len(o)))
        self.closure = seen
        hooked.append(0)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache["y"] = x
        self.record.append(self.calls)
        self.last = x
        h = self.drop(F.relu(self.n(self.a(x))))
        self.seen.copy_(h.detach().mean(0))
        h = h * random.random() * float(np.random.rand())
        return self.b(h + torch.rand_like(h))


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_answer_is_left(training: bool) -> None:
    torch.manual_seed(0)
    model = Busy().train(training)
    model.n.eval()
    x = torch.randn(4, 3)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    keys = {name: list(vars(module)) for name, module in model.named_modules()}
    values = (model.calls, dict(model.cache), list(model.record), list(model.closure), dict(model._buffers))
    drawn = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    modes = {name: module.training for name, module in model.named_modules()}
    grads = [p.requires_grad for p in model.parameters()]

    with contextlib.suppress(npn.PlasticityError):  # the factor is drawn anew in every trace
        trace(model, x)
    capture(model, x)

    assert (model.calls, model.cache, model.record, model.closure) == values[:4]
    assert all(model._buffers[k] is v for k, v in values[4].items())
    assert {name: list(vars(module)) for name, module in model.named_modules()} == keys
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert random.getstate() == drawn[0]
    assert np.random.get_state()[1].tolist() == drawn[1]
    assert torch.equal(torch.get_rng_state(), drawn[2])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert torch.backends.mkldnn.enabled and not torch.compiler.is_exporting()


def test_training_mode_that_cannot_be_traced_falls_back_to_eval() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).train()
    assert sizes(trace(model, torch.randn(1, 3))) == {"0": 4}
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_makes_no_difference(training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 2, 3)).train(training)
    structure = trace(model, torch.randn(3, 1, 8, 8))
    assert sizes(structure) == {"0": 4}
    where = {s.key for s in structure.groups[0].slots}
    assert where == {("0.weight", 0), ("0.bias", 0), ("3.weight", 1)} | {
        (f"1.{n}", 0) for n in ("weight", "bias", "running_mean", "running_var")
    }


# -- sharing


def test_a_reused_module_has_one_group() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.b(torch.tanh(self.a(x)))))))

    structure = trace(Reused(), torch.randn(2, 3))
    assert sizes(structure) == {"a": 6}
    assert {s.key: s.reads for s in structure.groups[0].slots} == {
        ("a.weight", 0): False, ("a.bias", 0): False, ("b.weight", 0): False, ("b.bias", 0): False,
        ("b.weight", 1): True, ("c.weight", 1): True,
    }  # fmt: skip


def test_tied_parameters_unite_by_identity() -> None:
    class Tied(nn.Module):
        def __init__(self, tie: bool) -> None:
            super().__init__()
            self.a, self.b, self.x, self.y = (nn.Linear(*s, bias=False) for s in ((3, 6), (3, 6), (6, 2), (6, 2)))
            if tie:
                self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.x(self.a(x)), self.y(self.b(-x))

    assert sizes(trace(Tied(False), torch.randn(2, 3))) == {"a": 6, "b": 6}
    structure = trace(Tied(True), torch.randn(2, 3))
    assert sizes(structure) == {"a": 6}
    assert {s.key for s in structure.groups[0].slots} == {("a.weight", 0), ("x.weight", 1), ("y.weight", 1)}


# -- what meets units


def test_size_1_axes_weld_nothing() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.s, self.b, self.c = nn.Linear(3, 6), nn.Linear(3, 1), nn.Linear(6, 4), nn.Linear(4, 2)
            self.bias = nn.Parameter(torch.randn(1))

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x)) * self.s(x).sigmoid() + self.bias
            return self.c(F.relu(self.b(h)) * self.s(x))

    assert sizes(trace(Gate(), torch.randn(2, 3))) == {"a": 6, "b": 4}
    assert sizes(trace(Gate(), torch.randn(1, 3))) == {"a": 6, "b": 4}


@pytest.mark.parametrize("value", [torch.linspace(0, 1, 6), torch.arange(6), torch.tensor([1.0, 1, 1, 1, 1, 2])])
def test_constants_that_vary_along_the_units_freeze_them(value: Tensor) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 2)
            self.scale = value

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x) * self.scale))  # scaled

    structure = trace(Scaled(), torch.randn(2, 3))
    assert sizes(structure) == {"b": 4}
    where = f"{HERE}:{line_of('scaled')}"
    expected = (
        f"combined with a value of fixed size at {where}, which the code computes for their present number, or a "
        "buffer of booleans or whole numbers; as a floating-point buffer it would be resized with them"
    )
    assert reasons(structure, "a.weight", 0) == expected
