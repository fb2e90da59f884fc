"""Checkpoints of handles whose units a method decides about: into a handle, into a plain model, without the method."""

import pytest
import torch
from torch import nn

import npn
from npn import methods
from npn.errors import CheckpointError

from .common import MAKE, build, shaken

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Branched(nn.Module):
    """Two residual branches, with a group of units in each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.b1, self.b2 = (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(2))

    def forward(self, x):
        h = torch.relu(self.stem(x))
        h = h + self.b1(h)
        return self.head(h + self.b2(h))


def branched(make, seed, **options):
    torch.manual_seed(seed)
    plastic = npn.attach(Branched(), torch.zeros(2, 5), branches=["b1", "b2"], **options)
    method = make(plastic)
    plastic.track(torch.optim.Adam([{"params": plastic.weights()}, {"params": method.parameters()}]))
    return plastic, method


BRANCHED = {
    "hard_concrete": (lambda plastic: methods.HardConcrete(plastic), {}),
    "lp_sphere": (lambda plastic: methods.LpSphere(plastic, steps=10), {}),
    "set": (lambda plastic: methods.SET(plastic, until=10, density=0.9), {"unstructured": "*"}),
}


@pytest.mark.parametrize("name", BRANCHED)
def test_what_a_removed_branch_took_along_is_missing_in_the_checkpoint_and_its_target(tmp_path, name):
    make, options = BRANCHED[name]
    plastic, method = branched(make, 0, **options)
    if name == "hard_concrete":
        with torch.no_grad():
            method.parameters()[-1][0] = -4.0
    else:
        method._tensors["active"]["branches"][0] = False
    assert method.compact().changes["branches"] == (2, 1)
    npn.save(tmp_path / "a.npn", plastic, method=method)
    other, same = branched(make, 1, **options)
    before = {name: p.detach().clone() for name, p in other.model.named_parameters()}
    npn.save(tmp_path / "late.npn", plastic, method=method, late=Late(refused=True))
    with pytest.raises(CheckpointError, match="holds a state of 'late'"):
        npn.load(tmp_path / "late.npn", other, method=same, late=Late())
    assert all(torch.equal(p, before[name]) for name, p in other.model.named_parameters())
    npn.load(tmp_path / "a.npn", other, method=same)
    x = torch.randn(4, 5)
    torch.testing.assert_close(other.model(x), plastic.model(x), rtol=0, atol=0)
    assert same.kept().keys() == method.kept().keys()
    same.load_state_dict(same.state_dict())  # of what is left


class Late:
    """Refuses a state that says so, after others have taken theirs."""

    def __init__(self, refused: bool = False) -> None:
        self.refused = refused

    def state_dict(self):
        return {"refused": self.refused}

    def load_state_dict(self, state):
        if state["refused"]:
            raise ValueError("no such state")


@pytest.mark.parametrize("method", [name for name in MAKE if name != "slimming"])
def test_a_plain_model_gets_the_mask_of_evaluation_in_its_weights(tiny, tmp_path, method):
    spec = tiny["conv"]
    model, plastic, way = build(tiny, method)
    shaken(way)
    npn.save(tmp_path / "a.npn", plastic, method=way)
    plain = npn.load(tmp_path / "a.npn", spec.model()).eval()
    x, _ = spec.data()
    torch.testing.assert_close(plain(x), model.eval()(x), atol=1e-6, rtol=1e-5)


NONE_BY_RULE = {
    "beta_bernoulli": lambda plastic: methods.BetaBernoulli(plastic, examples=10, threshold=0.9),
    "targeted_dropout": lambda plastic: methods.TargetedDropout(plastic, targeted=1.0),
}


@pytest.mark.parametrize("name", NONE_BY_RULE)
def test_a_plain_model_gets_the_mask_of_a_method_that_keeps_the_best_unit_alone(tmp_path, name):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
    plastic = npn.attach(model, x)
    npn.save(tmp_path / "a.npn", plastic, method=NONE_BY_RULE[name](plastic))  # before any call of the model
    plain = npn.load(tmp_path / "a.npn", nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    torch.testing.assert_close(plain(x), model(x))


def test_the_cut_of_slimming_is_in_the_checkpoint(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
        plastic = npn.attach(model, torch.zeros(2, 4))
        return model, plastic, methods.Slimming(plastic)

    model, plastic, method = build()
    nn.init.uniform_(model[1].weight)
    method.cut(0.5)
    npn.save(tmp_path / "a.npn", plastic, method=method)
    again, other, same = build()
    npn.load(tmp_path / "a.npn", other, method=same)
    x = torch.randn(5, 4)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert same.compact().changes == {"0": (8, 4)}


@pytest.mark.parametrize("options", [{"branches": ["b1", "b2"]}, {"columns": "head"}, {"unstructured": "*"}])
def test_masks_of_branches_columns_and_single_weights_reach_a_plain_model(tmp_path, options):
    torch.manual_seed(0)
    model, x = Branched(), torch.randn(4, 5)
    plastic = npn.attach(model, x, **options)
    method = methods.HardConcrete(plastic)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.linspace(-3, 3, parameter.numel()).view_as(parameter))
    npn.save(tmp_path / "a.npn", plastic, method=method)
    torch.testing.assert_close(npn.load(tmp_path / "a.npn", Branched())(x), model(x), atol=1e-6, rtol=1e-5)


def test_gates_that_look_at_the_input_are_no_part_of_a_plain_model(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plastic = npn.attach(model, torch.zeros(2, 4))
    methods.BetaBernoulli(plastic, examples=10)
    method = methods.DependentBetaBernoulli(plastic, examples=10)
    npn.save(tmp_path / "a.npn", plastic, method=method)
    fresh = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(
        CheckpointError, match=r"holds gates of DependentBetaBernoulli.* save method.export\(\) instead"
    ):
        npn.load(tmp_path / "a.npn", fresh)


@pytest.mark.parametrize("forgotten", ["save", "load"])
def test_a_handle_is_neither_saved_nor_loaded_without_its_method(tmp_path, forgotten):
    def build():
        plastic = npn.attach(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), torch.zeros(1, 5))
        return plastic, methods.HardConcrete(plastic)

    plastic, _ = build()
    path = tmp_path / "a.npn"
    if forgotten == "save":
        with pytest.raises(CheckpointError, match=r"HardConcrete decides .* npn.save\(path, plastic, method=method\)"):
            npn.save(path, plastic)
        assert not path.exists()
    else:
        trained = npn.attach(nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3)), torch.zeros(1, 5))
        npn.save(path, trained)
        with pytest.raises(CheckpointError, match=r"HardConcrete decides .* npn.load\(path, plastic, method=method\)"):
            npn.load(path, plastic)
