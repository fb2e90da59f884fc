"""An axis that the code cuts into equal chunks: units at the same place of each chunk come and go together."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn

from ..zoo.checks import check_grow, check_shrink, check_training, warm_up


class Conv(nn.Sequential):
    def __init__(self, old: int, new: int, kernel: int = 1) -> None:
        super().__init__(nn.Conv2d(old, new, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(new), nn.SiLU())


class C2f(nn.Module):
    """YOLOv8's block: half of the channels go through bottlenecks, and all that there is goes into the last layer."""

    def __init__(self, old: int, new: int, cut: Callable[["C2f", Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.c, self.cut = new // 2, cut
        self.cv1, self.cv2 = Conv(old, 2 * self.c), Conv(4 * self.c, new)
        self.m = nn.ModuleList(nn.Sequential(Conv(self.c, self.c, 3), Conv(self.c, self.c, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cut(self, self.cv1(x)))
        for m in self.m:
            parts.append(parts[-1] + m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Yolo(nn.Module):
    def __init__(self, cut: Callable[[C2f, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.stem, self.first, self.second = Conv(2, 6, 3), C2f(6, 8, cut), C2f(8, 12, cut)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))))


class Res2(nn.Module):
    """Res2Net's block: one width for all parts, each of which is added to what comes out of the one before."""

    def __init__(self, channels: int = 6, width: int = 4, parts: int = 3) -> None:
        super().__init__()
        self.stem, self.wide, self.width = Conv(2, channels), Conv(channels, width * parts), width
        self.convs = nn.ModuleList(Conv(width, width, 3) for _ in range(parts - 1))
        self.narrow, self.head = Conv(width * parts, channels), nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = self.wide(x).split(self.width, 1)
        out = [parts[0]]
        for conv, part in zip(self.convs, parts[1:], strict=True):
            out.append(conv(out[-1] + part))
        return self.head(x + self.narrow(torch.cat(out, 1)))


class Fixed(nn.Module):
    """Chunks whose width is a number of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.heads = nn.Linear(2, 8), nn.ModuleList(nn.Linear(4, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).split(4, 1)
        return self.heads[0](F.relu(a)) + self.heads[1](F.tanh(b))


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, int]]]] = {
    "chunk": (lambda: Yolo(lambda block, x: x.chunk(2, 1)), {"first.cv1.0": (4, 2), "second.cv1.0": (6, 2)}),
    "split": (lambda: Yolo(lambda b, x: x.split((b.c, b.c), 1)), {"first.cv1.0": (4, 2), "second.cv1.0": (6, 2)}),
    "width": (Res2, {"wide.0": (4, 3)}),
}


@functools.cache
def once(name: str) -> tuple[npn.Plasticity, Tensor]:
    torch.manual_seed(0)
    model, x = MODELS[name][0]().double(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    warm_up(model, x)
    return npn.attach(model, x), x


def attached(name: str) -> tuple[npn.Plasticity, Tensor]:
    return copy.deepcopy(once(name))


@pytest.mark.parametrize("name", MODELS)
def test_a_unit_has_one_channel_in_each_chunk(name: str) -> None:
    plastic, _ = attached(name)
    for tensor, (size, chunks) in MODELS[name][1].items():
        (slot,) = [s for g in plastic.structure.groups for s in g.slots if s.key == (f"{tensor}.weight", 0)]
        assert slot.index.tolist() == [[i + j * size for j in range(chunks)] for i in range(size)]
    frozen = {f.reason.partition(" at ")[0] for f in plastic.frozen}
    assert frozen == {"it is the model's output", "it reads an input of fixed size"}


@pytest.mark.parametrize("name", MODELS)
def test_masked_is_compact_is_exported_and_growth_is_silent(name: str) -> None:
    plastic, x = attached(name)
    plastic.model.eval()
    check_shrink(plastic, x)
    plastic, x = attached(name)
    plastic.model.eval()
    check_grow(plastic, x)


@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_alike(name: str) -> None:
    plastic, x = attached(name)
    check_training(plastic, x, functools.partial(torch.optim.Adam, lr=1e-2))


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints(name: str, tmp_path: Path) -> None:
    plastic, x = attached(name)
    for group in plastic.groups:
        plastic.close(group, [0, 2])
    plastic.compact()
    plastic.grow({plastic.groups[1].name: 1})
    npn.save(tmp_path / "run.npn", plastic)
    other = npn.load(tmp_path / "run.npn", attached(name)[0])
    torch.testing.assert_close(other.model.eval()(x), plastic.model.eval()(x))
    other.grow({plastic.groups[1].name: 2})
    torch.testing.assert_close(other.model(x), plastic.model(x))


def test_chunks_of_a_fixed_width_stay() -> None:
    with pytest.raises(npn.PlasticityError, match=r"stem.weight\[0\]: the code fixes this size at test_chunks.py:"):
        npn.attach(Fixed(), torch.randn(3, 2))
