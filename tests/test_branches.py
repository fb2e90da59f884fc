"""Gates on whole branches: a closed one computes zero, and leaves the model, its groups and its optimizers."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.errors import CheckpointError, ResizeError
from npn.export import write_model
from npn.modules import absent_paths
from npn.structure import Branches
from npn.surgery import plan_removal

from .zoo.checks import as_double, check_training, elsewhere, warm_up

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Net(nn.Module):
    """A stream of four channels and three branches; the last one has the stream on both axes of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.Sequential(*[Residual(*self.layers()) for _ in range(2)])
        self.blocks.append(Residual(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)))
        self.head = nn.Linear(4, 3)

    @staticmethod
    def layers() -> list[nn.Module]:
        convolutions = [nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.Conv2d(5, 4, 3, padding=1, bias=False)]
        return [convolutions[0], nn.BatchNorm2d(5), nn.ReLU(), convolutions[1], nn.BatchNorm2d(4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.blocks(self.stem(x))).mean((2, 3)))


def make() -> tuple[Net, Tensor, npn.Plasticity]:
    torch.manual_seed(0)
    model, x = Net(), torch.randn(6, 1, 6, 6)
    warm_up(model, x)
    return model, x, npn.attach(model, x, branches="blocks.*.branch")


def units(plastic: npn.Plasticity) -> dict[str, int]:
    return {group.name: group.size for group in plastic.groups}


def advance(plastic: npn.Plasticity, x: Tensor, steps: int, *optimizers: torch.optim.Optimizer) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        plastic.backward(lambda: (plastic.model(x) - 0.3).square().mean())
        for optimizer in optimizers:
            optimizer.step()


def test_branches_are_one_group() -> None:
    model, _, plastic = make()
    assert units(plastic) == {"stem": 4, "blocks.0.branch.0": 5, "blocks.1.branch.0": 5, "branches": 3}
    group = plastic.group("branches")
    assert not group.grows and group.slots == () and isinstance(group.traced, Branches)
    assert group.traced.paths == ("blocks.0.branch", "blocks.1.branch", "blocks.2.branch")
    norm = [tuple(f"blocks.{i}.branch.4.{name}" for name in ("weight", "bias")) for i in range(2)]
    assert group.traced.scales == (*norm, ("blocks.2.branch.2.weight", "blocks.2.branch.2.bias"))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in Net().named_parameters()]


@pytest.mark.parametrize("training", [False, True])
def test_masked_is_compact_is_exported(training: bool) -> None:
    model, x, plastic = make()
    model.train(training)
    plastic.close("branches", [0, 2])
    plastic.close("blocks.1.branch.0", [3])
    masked = copy.deepcopy(plastic).model(x)
    shortcut = copy.deepcopy(plastic)
    for number in (0, 2):
        shortcut.model.blocks[number] = nn.Identity()
    assert torch.equal(plastic.export()(x), masked)
    assert plastic.sizes() == {"stem": 4, "blocks.0.branch.0": 0, "blocks.1.branch.0": 4, "branches": 1}
    before = npn.count_params(model)
    report = plastic.compact()
    assert report.changes == {"blocks.0.branch.0": (5, 0), "blocks.1.branch.0": (5, 4), "branches": (3, 1)}
    assert report.removed == {"blocks.0.branch.0": (0, 1, 2, 3, 4), "blocks.1.branch.0": (3,), "branches": (0, 2)}
    gone = (2 * 9 * 20 + 10 + 8) + (8 + 16 + 4) + (2 * 9 * 4 + 2)
    assert report.params == (before, before - gone) and npn.count_params(model) == before - gone
    assert units(plastic) == plastic.sizes() == {"stem": 4, "blocks.1.branch.0": 4, "branches": 1}
    assert torch.equal(model(x), masked)
    assert absent_paths(model) == ["blocks.0.branch", "blocks.2.branch"]
    assert model.blocks[0].branch.training == training
    assert sum(model.state_dict().keys() == other.state_dict().keys() for other in (plastic.export(),)) == 1


@pytest.mark.parametrize("make_optimizer", [
    functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
    functools.partial(torch.optim.Adam, lr=1e-2),
])  # fmt: skip
def test_training_with_closed_branches_is_training_without_them(make_optimizer: Callable[[Any], Any]) -> None:
    model, x, plastic = make()
    model.double()
    check_training(plastic, as_double(x), make_optimizer)  # closes branches 1


def test_optimizers_forget_what_is_gone() -> None:
    model, x, plastic = make()
    inner, rest = list(model.blocks[1].parameters()), [p for n, p in model.named_parameters() if "blocks.1" not in n]
    weights = torch.optim.SGD([{"params": inner, "lr": 0.05}, {"params": rest}], lr=0.1, momentum=0.9)
    gates = torch.optim.Adam(plastic.logits(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(weights, 1, 0.5)
    plastic.track(weights, gates)
    plastic.k = 5.0
    advance(plastic, x, 2, weights, gates)
    momentum = weights.state[model.stem.weight]["momentum_buffer"].clone()
    moments = gates.state[plastic.group("branches").gate.logits]["exp_avg"].clone()
    plastic.close("branches", [1])
    plastic.compact()
    assert [len(group["params"]) for group in weights.param_groups] == [0, len(rest)]
    assert set(map(id, weights.state)) == set(map(id, rest)) == set(map(id, plastic.weights()))
    assert set(map(id, gates.state)) == set(map(id, plastic.logits()))
    assert list(map(id, gates.param_groups[0]["params"])) == list(map(id, plastic.logits()))
    assert torch.equal(weights.state[model.stem.weight]["momentum_buffer"], momentum)
    assert torch.equal(gates.state[plastic.group("branches").gate.logits]["exp_avg"], moments[[0, 2]])
    advance(plastic, x, 2, weights, gates)
    schedule.step()
    assert [group["lr"] for group in weights.param_groups] == [0.025, 0.05]


def test_a_failed_removal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, plastic = make()
    weights, gates = torch.optim.Adam(plastic.weights()), torch.optim.Adam(plastic.logits())
    plastic.track(weights, gates)
    plastic.k = 5.0
    advance(plastic, x, 1, weights, gates)
    plastic.close("branches", [0, 2])
    before, params, sizes = model.eval()(x), list(map(id, weights.param_groups[0]["params"])), units(plastic)

    def fails(model: nn.Module, structure: object) -> None:
        assert absent_paths(model) == ["blocks.0.branch", "blocks.2.branch"]
        raise ResizeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr("npn.surgery.apply.check_shapes", fails)
        with pytest.raises(ResizeError, match="on purpose"):
            plastic.compact()
    assert units(plastic) == sizes and not absent_paths(model) and torch.equal(model(x), before)
    assert list(map(id, weights.param_groups[0]["params"])) == params and len(weights.state) == len(params)
    assert len(gates.state) == len(sizes)
    plastic.compact()
    assert torch.equal(model(x), before)


def test_others_grow_when_a_branch_is_gone() -> None:
    model, x, plastic = make()
    adam = torch.optim.Adam(plastic.weights(), lr=1e-2)
    plastic.track(adam)
    plastic.close("branches", [0])
    plastic.compact()
    advance(plastic, x, 2, adam)
    before = model.eval()(x)
    plastic.grow({"stem": 2, "blocks.1.branch.0": 1})
    assert units(plastic) == {"stem": 6, "blocks.1.branch.0": 6, "branches": 2}
    assert torch.allclose(model(x), before, atol=1e-6)
    plastic.close("stem", [0, 5])
    plastic.close("branches", [1])
    masked = model(x)
    plastic.compact()
    assert units(plastic) == {"stem": 4, "blocks.1.branch.0": 6, "branches": 1}
    assert torch.allclose(model(x), masked, atol=1e-6)


def test_growth_does_not_mind_groups_that_have_gone() -> None:
    _, _, plastic = make()
    growth = npn.Growth(units={"blocks.0.branch.0": 1, "stem": 1}, limit={"blocks.0.branch.0": 9, "stem": 5})
    plastic.k = 5.0
    plastic.close("branches", [0])
    plastic.compact()
    growth.step(1.0, plastic)
    assert units(plastic) == {"stem": 5, "blocks.1.branch.0": 5, "branches": 2}


def test_the_last_branch_stays() -> None:
    _, _, plastic = make()
    with pytest.warns(
        UserWarning, match=r"^every unit of 'branches' is closed; unit 0 stays open, since one branch is always kept$"
    ):
        plastic.close("branches", [0, 1, 2])
    plastic.compact()
    assert plastic.sizes() == {"stem": 4, "blocks.0.branch.0": 5, "branches": 1}
    with pytest.raises(ResizeError) as error:
        plan_removal(plastic.structure, {"branches": [0]})
    assert str(error.value) == "cannot remove all 1 units of 'branches': keep at least one"


# -- leaving and coming back


def test_export_formats_know_what_is_gone(tmp_path: object) -> None:
    model, x, plastic = make()
    plastic.close("branches", [0, 2])
    small = plastic.export().eval()
    expected = small(x)
    assert type(small) is Net and torch.equal(model.eval()(x), expected)
    for other in elsewhere(small, x):
        assert torch.allclose(other(x), expected, atol=1e-6)
        assert isinstance(other, torch.jit.ScriptModule | torch.fx.GraphModule) or len(absent_paths(other)) == 2
    assert b"npn" not in pickle.dumps(small.blocks[0].branch)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(write_model(small, x, f"{tmp_path}/small.onnx", "onnx")))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


def test_an_exported_model_can_be_attached_again() -> None:
    _, x, plastic = make()
    plastic.close("branches", [0])
    small = plastic.export().eval()
    again = npn.attach(small, x, branches="blocks.*.branch")
    assert units(again) == {"stem": 4, "blocks.1.branch.0": 5, "branches": 2}
    again.close("branches", [1])
    masked = small(x)
    again.compact()
    again.grow({"stem": 1})
    assert torch.allclose(small(x), masked, atol=1e-6) and len(absent_paths(again.detach())) == 2


def test_checkpoints(tmp_path: object) -> None:
    def fresh() -> tuple[Tensor, npn.Plasticity, list[torch.optim.Optimizer]]:
        _, x, plastic = make()
        optimizers = [torch.optim.Adam(plastic.weights(), lr=1e-2), torch.optim.Adam(plastic.logits(), lr=1e-2)]
        plastic.track(*optimizers)
        return x, plastic, optimizers

    x, plastic, optimizers = fresh()
    plastic.k = 5.0
    advance(plastic, x, 3, *optimizers)
    plastic.close("branches", [0])
    plastic.compact()
    plastic.grow({"stem": 1})
    advance(plastic, x, 2, *optimizers)
    plastic.close("branches", [1])
    path = f"{tmp_path}/plastic"
    npn.save(path, plastic)
    npn.save(f"{tmp_path}/model", plastic.export())
    expected = plastic.model.eval()(x)
    plastic.model.train()
    advance(plastic, x, 3, *optimizers)

    _, resumed, others = fresh()
    npn.load(path, resumed)
    assert units(resumed) == units(plastic) == {"stem": 5, "blocks.1.branch.0": 5, "branches": 2}
    assert torch.equal(resumed.model.eval()(x), expected)
    resumed.model.train()
    advance(resumed, x, 3, *others)
    for (name, p), q in zip(plastic.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    for one, two in zip(plastic.logits(), resumed.logits(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(optimizers, others, strict=True):
        assert str(one.state_dict()) == str(two.state_dict())

    _, refusing, more = fresh()
    before, state = copy.deepcopy(refusing.model), str([o.state_dict() for o in more])
    hook = more[-1].register_load_state_dict_pre_hook(lambda optimizer, state: state["nothing"])
    with pytest.raises(CheckpointError, match=r"that the given \w+ refuses: 'nothing'; build it"):
        npn.load(path, refusing)
    assert absent_paths(refusing.model) == [] and str([o.state_dict() for o in more]) == state
    assert repr(refusing.model) == repr(before)
    hook.remove()
    assert units(npn.load(path, refusing)) == units(resumed)

    npn.save(f"{tmp_path}/whole", fresh()[1])
    shown = repr(resumed.model)
    for target in (resumed, resumed.export()):
        with pytest.raises(
            CheckpointError, match=r"has the branches blocks\.0\.branch, .* Build the model anew, attach"
        ):
            npn.load(f"{tmp_path}/whole", target)
    assert repr(resumed.model) == shown

    muted = npn.load(path, Net()).eval()
    assert absent_paths(muted) == ["blocks.0.branch"] and torch.allclose(muted(x), expected, atol=1e-6)
    small = npn.load(f"{tmp_path}/model", npn.load(f"{tmp_path}/model", Net())).eval()
    assert absent_paths(small) == ["blocks.0.branch", "blocks.2.branch"]
    assert torch.allclose(small(x), expected, atol=1e-6)

    with pytest.raises(CheckpointError) as error:
        npn.load(path, nn.Linear(2, 2))
    assert str(error.value) == (
        f"{path} is of a model without its branch 'blocks.0.branch', this model has nothing there; nothing was loaded"
    )
    plain = npn.attach(Net(), x)
    with pytest.raises(CheckpointError) as error:
        npn.load(path, plain)
    assert str(error.value) == (
        f"{path} has lost the branches blocks.0.branch, on which this model has no gates; build and attach it as then. "
        "Nothing was loaded"
    )
    assert absent_paths(plain.model) == []
