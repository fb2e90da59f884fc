"""Random architectures: masked == compacted == exported, growth changes nothing, training goes on alike."""

import copy
import functools

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import npn

from ..zoo.checks import as_double, check_grow, check_shrink, check_training, warm_up

Step = tuple[str, int, int]

OPS = st.sampled_from(
    ["conv", "conv", "conv", "norm", "act", "add", "cat", "slice", "flip", "depthwise", "gate", "permute", "roll",
     "pad", "shuffle", "pool", "twice", "linear"]
)  # fmt: skip


class Graph(nn.Module):
    """Values are kept in a list; each step makes a new one of earlier ones; the last is flattened and read."""

    def __init__(self, steps: list[Step], flat: bool) -> None:
        super().__init__()
        self.steps, self.flat = steps, flat
        self.layers = nn.ModuleDict()
        self.widths = [4]
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        for i, (op, a, b) in enumerate(steps):
            self.widths.append(
                self.build(str(i), op, self.widths[a % len(self.widths)], self.widths[b % len(self.widths)])
            )
        self.hidden = nn.Linear(self.widths[-1] * (16 if flat else 1), 5)
        self.head = nn.Linear(5, 2)

    def build(self, name: str, op: str, c: int, d: int) -> int:
        if op == "conv":
            self.layers[name] = nn.Conv2d(c, 3 + d % 4, 3, padding=1)
            return 3 + d % 4
        if op == "linear":
            self.layers[name] = nn.Linear(c, 4)
            return 4
        if op == "add":
            self.layers[name] = nn.Conv2d(c, d, 1)
            return d
        if op == "norm":
            self.layers[name] = nn.BatchNorm2d(c)
        elif op == "depthwise":
            self.layers[name] = nn.Conv2d(c, c, 3, padding=1, groups=c)
        elif op == "gate":
            self.layers[name] = nn.Linear(c, c)
        return {"cat": c + d, "slice": (c + 1) // 2, "twice": 2 * c}.get(op, c)

    def apply_step(self, name: str, op: str, x: Tensor, y: Tensor) -> Tensor:
        layer = dict(self.layers).get(name)
        n, c, a, b = x.shape
        if layer is not None and op not in ("add", "gate", "linear"):
            return layer(x)
        match op:
            case "linear":
                return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            case "add":
                return layer(x) + y
            case "gate":
                return x * layer(x.mean((2, 3))).sigmoid()[:, :, None, None]
            case "act":
                return F.gelu(x)
            case "cat":
                return torch.cat([x, y], 1)
            case "slice":
                return x[:, ::2]
            case "flip":
                return -x.flip(1)
            case "twice":
                return torch.cat([x, -x.flip(1)], 1)
            case "permute":
                return x.permute(0, 2, 3, 1).reshape(n, a * b, c).transpose(1, 2).view(n, c, a, b)
            case "roll":
                return x.roll(1, 1)
            case "pad":
                return F.pad(x, (1, 0, 0, 1))[:, :, 1:, :-1]
            case "shuffle":
                return x.view(n, c, a // 2, 2, b).transpose(2, 3).reshape(n, c, a, b)
            case _:
                return F.max_pool2d(x, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        values = [F.relu(self.stem(x))]
        for i, (op, a, b) in enumerate(self.steps):
            values.append(self.apply_step(str(i), op, values[a % len(values)], values[b % len(values)]))
        h = values[-1].flatten(1) if self.flat else values[-1].mean((2, 3))
        return self.head(torch.tanh(self.hidden(h)))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.tuples(OPS, st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=7),
    recent=st.booleans(),
    flat=st.booleans(),
    training=st.booleans(),
)
def test_random_graph(steps: list[Step], recent: bool, flat: bool, training: bool) -> None:
    if recent:  # a chain: each step reads the last value
        steps = [(op, i, b) for i, (op, _, b) in enumerate(steps)]
    torch.manual_seed(0)
    model, x = Graph(steps, flat), torch.randn(3, 2, 4, 4)
    warm_up(model, x)
    plastic = npn.attach(model.train(training), x)
    assert "hidden" in {g.name for g in plastic.groups}
    trained = copy.deepcopy(plastic)
    check_shrink(plastic, x, alive=False)
    check_grow(plastic, x)
    trained.model.double()
    check_training(trained, as_double(x), functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9))


def test_a_chain_of_convolutions_is_resizable_throughout() -> None:
    steps: list[Step] = [("conv", 0, 0), ("norm", 1, 0), ("act", 2, 0), ("conv", 3, 1), ("twice", 4, 0)]
    plastic = npn.attach(Graph(steps, True), torch.randn(3, 2, 4, 4))
    assert {g.name: g.size for g in plastic.groups} == {"stem": 4, "layers.0": 3, "layers.3": 6, "hidden": 5}
