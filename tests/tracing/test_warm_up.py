"""Tables that code caches outside of the model hold real tensors, however often a trace runs through it."""

import functools

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


def test_the_model_runs_once_for_real() -> None:
    real: list[bool] = []

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            real.append(type(x) is Tensor and not torch._is_functional_tensor(x))
            return super().forward(x)

    trace(Net(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(3, 4))
    assert real[0] and not any(real[1:]) and len(real) > 2
