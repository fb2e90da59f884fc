"""What is refused, or fails half-way, leaves model, gates, method and files as they were."""

import contextlib
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import npn
from npn.errors import CheckpointError, ConfigurationError, OptimizerError, ResizeError

pytestmark = pytest.mark.usefixtures("traces_are_shared")

X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2


def net(hidden: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], value) for name, value in before.items())


# -- files


def test_numbers_of_numpy_become_pythons(tmp_path: Any) -> None:
    budget = npn.Budget("params", float(np.float64(0.5)))
    plastic = npn.attach(net(), X, penalty=budget)
    weights = torch.optim.SGD(plastic.weights(), lr=np.float64(0.1), momentum=0.9)  # type: ignore[arg-type]
    plastic.track(weights)
    extra = {"best": np.float64(0.9), "at": [np.int64(3), (np.bool_(True), "x")], np.str_("key"): {1, 2}}
    npn.save(tmp_path / "f.npn", plastic, extra=extra)
    npn.load(tmp_path / "f.npn", plastic)
    found = npn.read_extra(tmp_path / "f.npn")
    assert found == {"best": 0.9, "at": [3, (True, "x")], "key": {1, 2}}
    assert type(found["best"]) is float and type(found["at"][0]) is int and type(extra["best"]) is np.float64


def test_what_could_not_be_loaded_again_is_not_written(tmp_path: Any) -> None:
    file = tmp_path / "f.npn"
    npn.save(file, net(), extra={"epoch": 1})
    for save, name in ((npn.save, "f.npn"), (npn.save_folder, "folder")):
        with pytest.raises(CheckpointError) as refused:
            save(tmp_path / name, net(), extra={"runs": [{"scores": np.zeros(2)}]})
        assert str(refused.value) == (
            "extra.runs[0].scores is of class numpy.ndarray, which could not be loaded again; save tensors and plain "
            "values: numbers, text, None, and lists, tuples, sets and dicts of these"
        )
    assert npn.read_extra(file) == {"epoch": 1} and not (tmp_path / "folder").exists()


# -- gates


def test_gates_that_are_no_numbers_remove_nothing() -> None:
    plastic = npn.attach(net(), X)
    before, logits = state(plastic.model), plastic.logits()[0]
    logits.grad = torch.full((8,), math.nan)
    torch.optim.Adam([logits]).step()
    for action in (plastic.compact, plastic.export):
        with pytest.raises(
            ResizeError, match=r"^8 of 8 logits of '0' are NaN, so which of its units stay is not known"
        ):
            action()
    assert same(plastic.model, before)


@pytest.mark.parametrize("shift", [3.0, -3.0])
def test_a_gate_function_that_opens_on_the_wrong_side_is_refused(shift: float) -> None:
    model = net()
    with pytest.raises(ConfigurationError, match=r"^function must reach 0.95 at a logit above 0 and 0.05 below, since"):
        npn.attach(model, X, function=npn.functional.ShiftedSigmoid(shift))
    npn.attach(model, X, function=npn.functional.ShiftedSigmoid(shift / 2)).close("0", [0, 1])


# -- resizes


def test_a_warning_as_an_error_comes_after_the_growth() -> None:
    plastic = npn.attach(net(), X)
    plastic.model[2].requires_grad_(False)  # type: ignore[operator, union-attr]
    with warnings.catch_warnings(), contextlib.suppress(UserWarning):
        warnings.simplefilter("error")
        plastic.grow({"0": 2})
    assert plastic.model[0].weight.shape == (10, 4) and plastic.groups[0].size == 10  # type: ignore[index, union-attr]
    assert float(plastic.expected_cost("params")) == 10 * 5 + 2 * 11


class Refusing(nn.Sequential):
    """Its train() raises when it is told to."""

    refuses = False

    def train(self, mode: bool = True) -> "Refusing":
        if self.refuses and mode:
            raise RuntimeError("not now")
        return super().train(mode)


def test_a_resize_that_train_refuses_changes_nothing() -> None:
    model = Refusing(*net()).eval()
    plastic = npn.attach(model, X)
    plastic.close("0", [0, 1])
    before = state(model)
    Refusing.refuses = True
    try:
        with pytest.raises(RuntimeError, match="not now"):
            plastic.compact()
    finally:
        Refusing.refuses = False
    assert same(model, before) and plastic.groups[0].size == 8
    assert plastic.compact().changes == {"0": (8, 6)}


# -- calls


def test_a_masked_call_that_cannot_begin_leaves_the_weights() -> None:
    plastic = npn.attach(net(), X)
    plastic.close("0", [0, 1])
    before = state(plastic.model)
    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks"), pytest.raises(RuntimeError, match="no hooks"):
        plastic.model(X)
    assert same(plastic.model, before)
    assert torch.allclose(plastic.model(X), plastic.export()(X))


def test_cached_parametrizations_are_those_of_the_mask() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), weight_norm(nn.Linear(8, 2)))
    plastic = npn.attach(model, X)
    with torch.no_grad(), parametrize.cached():
        model(X)
        plastic.close("0", [0, 1, 2])
        cached = model(X)
    assert torch.allclose(cached, model(X))


class Expanded(nn.Module):
    """Multiplies by a buffer that is one number, expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("e", torch.ones(1).expand(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))) * self.e


def test_expanded_buffers_stay() -> None:
    plastic = npn.attach(Expanded(), X, estimator="disarm")
    plastic.k = 7.0
    loss = plastic.backward(lambda: F.cross_entropy(plastic.model(X), Y))
    assert torch.isfinite(loss) and plastic.logits()[0].grad is not None


# -- prices and methods


def test_a_price_that_is_set_later_counts_single_weights() -> None:
    gradients = []
    for late in (False, True):
        price = npn.Penalty("layerwise", {"*": 1.0})
        plastic = npn.attach(net(), X, unstructured="*", penalty=None if late else price)
        plastic.penalty, plastic.k = price, 7.0
        plastic.backward(lambda: 0 * plastic.model(X).sum())  # noqa: B023
        gradients.append(plastic.unstructured["0.weight"].logits.grad)
    assert gradients[0].abs().max() > 0 and torch.equal(*gradients)


def test_a_method_refuses_before_anything_has_changed() -> None:
    plastic = npn.attach(net(), X, unstructured="0")
    npn.methods.TargetedDropout(plastic)
    plastic.backward(lambda: F.cross_entropy(plastic.model(X), Y))
    before = state(plastic.model)
    with pytest.raises(ConfigurationError, match=r"^TargetedDropout decides which units stay, so "):
        plastic.reconnect(3)
    assert same(plastic.model, before)


def test_a_method_takes_no_state_of_another_model() -> None:
    ours, theirs = (
        npn.methods.HardConcrete(npn.attach(model, X)) for model in (net(), nn.Sequential(nn.Identity(), *net()))
    )
    before = ours.state_dict()
    with pytest.raises(CheckpointError, match=r"^expected .* of 0, got it of 1; build the method on the saved one's"):
        ours.load_state_dict(theirs.state_dict())
    now = ours.state_dict()
    for name, tensors in before["tensors"].items():
        assert all(torch.equal(now["tensors"][name][group], value) for group, value in tensors.items())


def test_growth_that_a_method_refuses_changes_nothing() -> None:
    plastic = npn.attach(nn.Sequential(*net()[:2], nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), X)
    method = npn.methods.HardConcrete(plastic)
    with torch.no_grad():
        method.parameters()[1][0] = -9.0
    method.after_step()
    growth, before = npn.Growth(units=1, revive=1), state(plastic.model)
    with pytest.raises(ConfigurationError, match=r"^HardConcrete decides which units stay, so "):
        growth.step(1.0, plastic)
    assert same(plastic.model, before) and not growth.history and growth.state_dict()["steps"] == 0


def test_reconnection_that_a_method_refuses_changes_nothing() -> None:
    model = nn.Sequential(*net()[:2], nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    plastic = npn.attach(model, X, unstructured="2")
    npn.methods.RigL(plastic, density=0.5, until=100)
    growth, before = npn.Growth(units=1, connections=1), state(model)
    with pytest.raises(ConfigurationError, match=r"^RigL decides which units stay, so they are not opened by hand"):
        growth.step(1.0, plastic)
    assert same(model, before) and not growth.history and growth.state_dict()["steps"] == 0


# -- optimizers


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_inside_backward_is_refused(fused: bool) -> None:
    plastic = npn.attach(net(), X)
    plastic.k, weight = 7.0, plastic.model[2].weight  # type: ignore[index]
    optimizer, before = torch.optim.AdamW([weight], lr=0.05, fused=fused), weight.detach().clone()
    weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    with pytest.raises(ConfigurationError, match=r"^2.weight was changed inside plastic.backward"):
        plastic.backward(lambda: F.cross_entropy(plastic.model(X), Y))
    assert torch.equal(weight, before)


def test_removed_weights_stay_zero_under_an_update_that_mixes_entries() -> None:
    plastic = npn.attach(net(), X, unstructured="0")
    weights = torch.optim.Muon([plastic.model[0].weight, plastic.model[2].weight], lr=0.05)  # type: ignore[index]
    plastic.track(weights)

    def step() -> None:
        weights.zero_grad()
        plastic.backward(lambda: F.cross_entropy(plastic.model(X), Y))
        weights.step()

    step()
    plastic.close("0.weight", [0, 1, 9])
    plastic.compact()
    for _ in range(3):
        step()
        assert plastic.model[0].weight.view(-1)[[0, 1, 9]].eq(0).all()  # type: ignore[index]
    before = plastic.model(X)
    plastic.open("0.weight", [0, 1, 9])
    assert torch.equal(plastic.model(X), before)


# -- other ways into the model


class Parts(nn.Sequential):
    """A network whose loss and features do not go through its own call."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self[2](self.features(x)), y)

    def features(self, x: Tensor) -> Tensor:
        return self[1](self[0](x))


def parts() -> tuple[Parts, npn.Plasticity]:
    model = Parts(*net())
    plastic = npn.attach(model, X)
    plastic.close("0", range(5))
    return model, plastic


def test_a_model_with_closed_units_is_saved_by_its_handle(tmp_path: Any) -> None:
    model, plastic = parts()
    with pytest.raises(CheckpointError, match=r"^units of the model are closed, which its weights do not tell"):
        npn.save(tmp_path / "f.npn", model)
    plastic.compact()
    npn.save(tmp_path / "f.npn", model)
    torch.testing.assert_close(npn.load(tmp_path / "f.npn", Parts(*net()))(X), model(X))


def test_a_closure_that_calls_another_model_is_refused() -> None:
    model, plastic = parts()
    small, plastic.k = plastic.export(), 7.0
    for estimator in ("reinmax", "straight_through"):
        plastic.estimator = estimator
        with pytest.raises(ConfigurationError, match=r"^the loss depends on no weight of the attached model"):
            plastic.backward(lambda: F.cross_entropy(small(X), Y))
    assert plastic.logits()[0].grad is None
    plastic.backward(lambda: model.loss(X, Y))


def test_a_detached_handle_is_of_no_use() -> None:
    model, plastic = parts()
    plastic.detach()
    before = state(model)
    with pytest.raises(
        ConfigurationError, match=r"^this handle was detached from its model; npn.attach the model again$"
    ):
        plastic.backward(lambda: model.loss(X, Y))
    for action in (plastic.compact, lambda: plastic.grow({"0": 1})):
        with pytest.raises((ConfigurationError, ResizeError), match=r"^this handle was detached"):
            action()
    assert same(model, before) and npn.attach(model, X).compact().changes == {}


class Preconditioned(torch.optim.Optimizer):
    """Shampoo in short: a matrix for each axis, and a setting that is an attribute."""

    def __init__(self, parameters: Any, eps: float = 1e-4) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.eps = eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if p.dim() == 2 and not self.state[p]:
                self.state[p] = {f"axis{axis}": self.eps * torch.eye(size) for axis, size in enumerate(p.shape)}


def test_a_matrix_for_each_axis_is_refused_whatever_the_optimizer_keeps() -> None:
    plastic = npn.attach(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), X)
    with pytest.raises(
        OptimizerError, match=r"^Preconditioned keeps 'axis0' of a parameter of shape \(3, 5\) as shape"
    ):
        plastic.track(Preconditioned(plastic.weights()))
