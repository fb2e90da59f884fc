"""Tables that code caches outside of the model hold real tensors, however often a trace runs through it."""

import copy
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
                if not self.by_norm or self.weight.norm() > 0.1:
                    self.weight.mul_(0.9)
            return super().forward(x)

    model, x = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 8), Bounded(8, 2)), torch.randn(5, 4)
    model[2].by_norm = False
    own = model[2].weight.detach().clone()
    plastic = npn.attach(model, x)
    assert plastic.sizes() == {"0": 9} and torch.equal(model[2].weight, own)
    reasons = {f.name: f.reason for f in plastic.frozen}
    assert reasons["1.weight[0]"] == "the forward pass in train() changes 2.weight by itself"

    model = nn.Sequential(nn.Linear(4, 8), Bounded(8, 2))
    model[1].by_norm = True
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


class Momentum(nn.Module):
    """A teacher that train mode moves towards its student, before a part that both leave alone."""

    def __init__(self, update, buffers=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 6))
        self.q = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.k = copy.deepcopy(self.q).requires_grad_(False)
        self.update = update
        for layer in (self.k[0], self.k[2]) if buffers else ():
            for name, weight in list(layer.named_parameters()):
                delattr(layer, name)
                layer.register_buffer(name, weight.detach())

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                for mine, its in zip(self.q, self.k, strict=True):
                    for name, weight in mine.named_parameters():
                        self.update(getattr(its, name), weight)
        x = self.stem(x)
        with torch.no_grad():
            teacher = self.k(x)
        return (self.q(x) - teacher).square()


def assigned(its, weight):
    its.data = its.data * 0.9 + weight.data * 0.1


UPDATES = {
    "mul_": lambda its, weight: its.mul_(0.9).add_(weight, alpha=0.1),
    "lerp_ of data": lambda its, weight: its.data.lerp_(weight.data, 0.1),
    "data =": assigned,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("buffers", [True, False])
@pytest.mark.parametrize("way", UPDATES)
def test_what_one_mode_mixes_into_weights_keeps_its_sizes(way, buffers, training) -> None:
    torch.manual_seed(0)
    model, x = Momentum(UPDATES[way], buffers).train(training), torch.randn(5, 4)
    plastic = npn.attach(model, x)
    assert plastic.sizes()["stem.0"] == 9 and ("q.0" in plastic.sizes()) <= buffers
    for group in plastic.groups:
        plastic.close(group, [0, 2])
    masked = model.eval()(x)
    plastic.compact()
    torch.testing.assert_close(model(x), masked)
    assert model.train()(x).shape == (5, 3)
    plastic.grow({"stem.0": 2})
    assert model(x).shape == (5, 3)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_resized_where_no_trace_sees_what_goes_into_a_weight(training) -> None:
    def decides(its, weight):
        if weight.norm() > 0:
            UPDATES["mul_"](its, weight)

    model, x = Momentum(decides).train(training), torch.randn(5, 4)
    message = (
        "stem.0.weight.* the forward pass in train.. changes k.0.bias by itself, where the trace cannot see what goes "
        "into it; change weights outside of the forward pass"
    )
    with pytest.warns(UserWarning, match="cannot be traced there"), pytest.raises(npn.PlasticityError, match=message):
        npn.attach(model, x)
