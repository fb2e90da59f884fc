"""Tables that code caches outside of the model hold real tensors, however often a trace runs through it."""

import functools

import pytest
import torch
from torch import Tensor, nn

import npn
from npn.tracing import trace


class Cached(nn.Module):
    """Adds a table from `functools.lru_cache`, multiplies by one from a dict that belongs to no module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(4, 8), nn.BatchNorm1d(5), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.table = functools.lru_cache(lambda n: torch.linspace(0, 1, n)[None, :, None])
        tables: dict[int, Tensor] = {}

        def scale(n: int) -> Tensor:
            if n not in tables:
                tables[n] = torch.linspace(1, 2, n)[:, None]
            return tables[n]

        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.mul_(1.0)
        return self.b(torch.relu(self.a(self.n(x + self.table(x.shape[1]))))) * self.scale(x.shape[1])


def test_tables_cached_elsewhere_are_real() -> None:
    torch.manual_seed(0)
    model, x = Cached(), torch.randn(3, 5, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    plastic = npn.attach(model, x)
    assert {g.name: g.size for g in plastic.groups} == {"a": 8}
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()), "it ran in training"
    assert torch.equal(torch.get_rng_state(), rng)
    model.eval()
    plastic.close("a", [1, 2])
    masked = model(x)
    assert type(masked) is Tensor
    torch.testing.assert_close(plastic.export()(x), masked)
    assert not plastic.structure.modes_differ and not vars(model.table(5)) and not vars(model.scale(5))


def test_the_model_runs_once_in_each_mode_for_real() -> None:
    real: list[bool] = []

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            real.append(type(x) is Tensor and not torch._is_functional_tensor(x))
            return super().forward(x)

    trace(Net(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(3, 4))
    assert real[:2] == [True, True] and not any(real[2:]) and len(real) > 3


class Rescaled(nn.Module):
    """Halves a weight in eval mode and doubles it in train mode, as RWKV does."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.halved, self.way = False, way

    def rescale(self) -> None:
        factor = 2.0 if self.training else 0.5
        with torch.no_grad():
            if self.way == "in place":
                self.b.weight.mul_(factor)
            elif self.way == "data":
                self.b.weight.data = self.b.weight.data * factor
            else:
                self.b.weight = nn.Parameter(self.b.weight * factor)
        self.halved = not self.training

    def forward(self, x: Tensor) -> Tensor:
        if self.halved == self.training:
            self.rescale()
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(h * 2 if self.halved else h)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["in place", "data", "another parameter"])
def test_weights_that_the_model_changes_by_itself_keep_their_sizes(way: str, training: bool) -> None:
    torch.manual_seed(0)
    model, x = Rescaled(way), torch.randn(5, 4)
    wide = nn.Sequential(nn.Linear(4, 8), model).train(training)
    model.a = nn.Linear(8, 8)
    own, parameter = model.b.weight.detach().clone(), model.b.weight
    plastic = npn.attach(wide, x)
    assert torch.equal(model.b.weight, own) and model.b.weight is parameter and model.halved is False
    assert [g.name for g in plastic.groups] == ["0"]
    reasons = {f.name: f.reason for f in plastic.frozen}
    expected = "the forward pass in eval() changes 1.b.weight by itself"
    assert reasons["1.a.weight[0]"] == reasons["1.b.weight[0]"] == expected
    plastic.k = 7.0
    for mode in (True, False, True):
        wide.train(mode)
        if mode:
            plastic.backward(lambda: wide(x).square().mean())
        else:
            wide(x)
    torch.testing.assert_close(model.b.weight, own)


def test_weights_that_are_changed_in_both_modes() -> None:
    class Bounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.mul_(0.9)
            return super().forward(x)

    model, x = nn.Sequential(nn.Linear(4, 8), Bounded(8, 2)), torch.randn(5, 4)
    own = model[1].weight.detach().clone()
    with pytest.raises(npn.PlasticityError) as caught:
        npn.attach(model, x)
    message = str(caught.value)
    assert message.startswith("the forward pass in train() changes 1.weight by itself, which cannot be traced (")
    assert message.endswith(
        "; change weights outside of the forward pass, or trace only a part of the model without them: "
        "npn.attach(model.backbone, ...)"
    )
    assert torch.equal(model[1].weight, own)
