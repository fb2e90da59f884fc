"""Layers that read pruned units are refitted, so that they compute from the rest what they computed before."""

import copy

import pytest
import torch
from torch import Tensor, nn

import npn
from npn._importance.reconstruct import RIDGE
from npn.errors import ConfigurationError, NonFiniteLossError

pytestmark = pytest.mark.usefixtures("traces_are_shared")

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(256, 6, generator=GENERATOR)
IMAGES = torch.randn(32, 3, 9, 9, generator=GENERATOR)


def output_norm(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def batches(x: Tensor) -> list[Tensor]:
    return list(x.split(16))


def pruned(model: nn.Module, x: Tensor, target: float = 0.5, **options: object) -> tuple[nn.Module, nn.Module]:
    settings = {"criterion": "magnitude", "batches": batches(x), "loss": output_norm, **options}
    return tuple(npn.prune(model, x[:2], target=target, reconstruct=on, **settings) for on in (False, True))


def error(small: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).square().mean())


def mlp(hidden: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def test_weights_are_those_of_ridge_regression() -> None:
    model = mlp()
    plain, refitted = pruned(model, X)
    with torch.no_grad():
        stay = [i for i in range(12) if any(torch.equal(model[0].weight[i], row) for row in plain[0].weight)]
        gone = [i for i in range(12) if i not in stay]
        h = torch.tanh(model[0](X)).double()
        ridge = RIDGE * h[:, stay].square().mean()
        rows = torch.cat([h[:, stay], h.new_ones(len(h), 1)], 1)
        penalty = torch.eye(len(stay) + 1, dtype=h.dtype)[:-1] * (ridge * len(h)).sqrt()
        wanted = torch.cat([h[:, gone], h.new_zeros(len(stay), len(gone))])
        m = torch.linalg.lstsq(torch.cat([rows, penalty]), wanted).solution.float()  # (stay and 1, gone)
        more = model[2].weight[:, gone] @ m.mT
        torch.testing.assert_close(refitted[2].weight, model[2].weight[:, stay] + more[:, :-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(refitted[2].bias, model[2].bias + more[:, -1], atol=1e-4, rtol=1e-4)
    assert torch.equal(refitted[0].weight, plain[0].weight), "what makes the units that stay does not change"
    assert gone and error(refitted, model, X) < 0.5 * error(plain, model, X)


def test_a_unit_that_repeats_another_is_made_up_for() -> None:
    model = mlp(8)
    model[1] = nn.ReLU()
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = 0.1 * model[0].weight[:4], 0.1 * model[0].bias[:4]
        model[2].weight[:, 4:] *= 0.1
    plain, refitted = pruned(model, X, target=0.51)
    assert refitted[0].out_features == 4
    assert error(refitted, model, X) < 1e-4 * error(plain, model, X)


class Convolutions(nn.Module):
    """One layer of each kind reads channels: with stride, dilation and padding, behind BatchNorm, pooled, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, stride=2, dilation=2, padding=2, bias=False)
        self.up = nn.ConvTranspose2d(16, 12, 3, stride=2)
        self.line = nn.Conv1d(12, 12, 3)
        self.head = nn.Linear(12 * 119, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.a(x)))
        h = torch.relu(self.up(input=torch.relu(self.b(h))))
        return self.head(torch.relu(self.line(h.flatten(2))).flatten(1))


@pytest.mark.parametrize("group", ["a", "b", "up", "line"])
def test_every_kind_of_layer_is_refitted(group: str) -> None:
    torch.manual_seed(0)
    model = Convolutions()
    output_norm(model, IMAGES)  # running statistics
    model.eval()
    plain, refitted = pruned(model, IMAGES, target=0.85, only=group)
    assert error(refitted, model, IMAGES) < 0.9 * error(plain, model, IMAGES)
    reader = {"a": "b", "b": "up", "up": "line", "line": "head"}[group]
    changed = {
        name
        for (name, old), new in zip(plain.named_parameters(), refitted.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed <= {f"{reader}.weight", f"{reader}.bias"} and f"{reader}.weight" in changed


class Mixed(nn.Module):
    """Readers that cannot be refitted: a weight that two layers share, and a convolution with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.deep = nn.Linear(6, 8), nn.Conv1d(8, 8, 1, groups=8)
        self.b, self.c = nn.Linear(8, 5), nn.Linear(8, 5)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.deep(torch.relu(self.a(x))[..., None])[..., 0]
        return self.b(h) + self.c(h.square())


def test_other_layers_stay_as_they_are() -> None:
    torch.manual_seed(0)
    plain, refitted = pruned(Mixed(), X)
    assert plain.a.out_features < 8
    for old, new in zip(plain.parameters(), refitted.parameters(), strict=True):
        assert torch.equal(old, new)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 3)).train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    small = npn.prune(
        model, X[:4], target=0.5, criterion="magnitude", batches=batches(X), loss=output_norm, reconstruct=True
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert int(small[1].num_batches_tracked) == 0 and small.training


def test_weights_in_half_precision() -> None:
    model = mlp(32).to(torch.bfloat16)
    plain, refitted = pruned(model, X.to(torch.bfloat16))
    assert refitted[2].weight.dtype == torch.bfloat16
    assert error(refitted, model, X.to(torch.bfloat16)) < 0.5 * error(plain, model, X.to(torch.bfloat16))


class Constant(nn.Module):
    """Adds what layers compute of a learned vector, which has no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.layers, self.head = nn.Parameter(torch.randn(4)), mlp(), nn.Linear(6, 3)
        self.layers[0] = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + self.layers(self.vector)


def test_a_layer_that_reads_a_vector_is_refitted() -> None:
    model = Constant()
    plain, refitted = pruned(model, X, target=0.8)
    assert refitted.layers[0].out_features < 12
    assert error(refitted, model, X) < 1e-6 < error(plain, model, X)


def test_errors_say_what_is_missing() -> None:
    with pytest.raises(ConfigurationError, match=r"reconstruct=True needs data: .*; batches and loss missing$"):
        npn.prune(mlp(), X[:2], target=0.5, criterion="magnitude", reconstruct=True)
    with pytest.raises(ConfigurationError, match=r"batches is empty; give at least one batch \(an iterator is used up"):
        pruned(mlp(), X, criterion="fisher", batches=iter(batches(X)))
    with pytest.raises(NonFiniteLossError, match="the inputs of 2 are not finite on the batches; check them"):
        pruned(mlp(), X, batches=[X, X * torch.nan])
