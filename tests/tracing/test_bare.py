"""Modules without parameters that keep numbers: torch's own layers and those of users follow what goes into them."""

import warnings

import pytest
import torch
from torch import nn

import npn
from npn.modules import integers

from ..zoo.checks import check_grow, check_resizes, check_shrink


class Reshaped(nn.Module):
    """A user's layer without parameters, which knows its number of channels."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        return x.view(len(x), self.channels, 3, 3)


class Side(nn.Module):
    """Two layers side by side, and numbers of fixed size before them, under one norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 10, 1), nn.Conv2d(19, 2, 1)
        self.norm = nn.InstanceNorm2d(19)

    def forward(self, x):
        return self.head(self.norm(torch.cat([x, self.a(x), self.b(x)], 1)).relu())


def repeated(norm):
    layers = (m for c in (3, 16, 16) for m in (nn.Conv2d(c, 16, 3), norm(), nn.ReLU()))
    return nn.Sequential(*layers, nn.Conv2d(16, 4, 1))


MAPS, ROWS = (2, 3, 8, 8), (2, 5)
MODELS = {
    "GroupNorm": (lambda: repeated(lambda: nn.GroupNorm(4, 16, affine=False)), MAPS, {"0": 4, "3": 4, "6": 4}),
    "GroupNorm of single channels": (
        lambda: repeated(lambda: nn.GroupNorm(16, 16, affine=False)), MAPS, {"0": 16, "3": 16, "6": 16}
    ),
    "InstanceNorm": (lambda: repeated(lambda: nn.InstanceNorm2d(16)), MAPS, {"0": 16, "3": 16, "6": 16}),
    "BatchNorm": (
        lambda: repeated(lambda: nn.BatchNorm2d(16, affine=False, track_running_stats=False)),
        MAPS, {"0": 16, "3": 16, "6": 16},
    ),
    "Unflatten": (
        lambda: nn.Sequential(nn.Linear(5, 144), nn.Unflatten(1, (16, 3, 3)), nn.Conv2d(16, 3, 2)), ROWS, {"0": 16}
    ),
    "Unflatten by a torch.Size": (
        lambda: nn.Sequential(nn.Linear(5, 144), nn.Unflatten(1, torch.Size((16, 3, 3))), nn.Conv2d(16, 3, 2)),
        ROWS, {"0": 16},
    ),
    "a user's": (lambda: nn.Sequential(nn.Linear(5, 144), Reshaped(16), nn.Conv2d(16, 3, 2)), ROWS, {"0": 16}),
    "several of a user": (
        lambda: nn.Sequential(
            nn.Linear(5, 144), Reshaped(16), nn.Conv2d(16, 4, 1), nn.Flatten(),
            nn.Linear(36, 144), Reshaped(16), nn.Conv2d(16, 3, 2),
        ),
        ROWS, {"0": 16, "2": 4, "4": 16},
    ),
    "InstanceNorm of several": (Side, MAPS, {"a": 6, "b": 10}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_layers_without_parameters_follow(name):
    make, shape, sizes = MODELS[name]

    def attached():
        torch.manual_seed(0)
        x = torch.randn(shape, dtype=torch.float64)
        return npn.attach(make().double(), x), x

    assert attached()[0].sizes() == sizes
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "input's size at dim=1 does not match num_features")
        check_resizes(attached)


def test_their_numbers_say_the_size():
    model, x = Side(), torch.randn(MAPS)
    plastic = npn.attach(model, x)
    plastic.close("a", [0, 4])
    plastic.close("b", [3])
    plastic.compact()
    assert model.norm.num_features == model.head.in_channels == 16
    plastic.grow({"b": 3})
    assert model.norm.num_features == model.head.in_channels == 19
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16, affine=False), nn.Conv2d(16, 4, 1))
    plastic = npn.attach(model, x)
    plastic.close("0", [1])
    plastic.compact()
    assert (model[1].num_groups, model[1].num_channels) == (3, 12)


def test_they_follow_a_file(tmp_path):
    def make():
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16, affine=False), nn.Conv2d(16, 4, 1))

    model, x = make().eval(), torch.randn(MAPS)
    plastic = npn.attach(model, x)
    plastic.close("0", [1])
    plastic.compact()
    npn.save(tmp_path / "small.npn", plastic)
    loaded = make().eval()
    npn.load(tmp_path / "small.npn", loaded)
    torch.testing.assert_close(loaded(x), model(x))


def test_the_check_of_a_transformer_follows_its_stream():
    class Translates(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.t = nn.Linear(6, 24), nn.Transformer(24, 4, 1, 1, 40, batch_first=True)
            self.o = nn.Linear(24, 3)

        def forward(self, a, b):
            return self.o(self.t(self.i(a), self.i(b)))

    torch.manual_seed(0)
    model, inputs = npn.unfuse(Translates()), (torch.randn(2, 4, 6), torch.randn(2, 5, 6))
    plastic = npn.attach(model.eval(), inputs, streams=True)
    assert plastic.sizes()["i"] == 24
    check_shrink(plastic, inputs, tolerance=1e-4)
    assert model.t.d_model == plastic.sizes()["i"] == 12


class Cells(nn.Module):
    """Layers that need no number of theirs to run."""

    def __init__(self):
        super().__init__()
        self.bag, self.cell, self.pair = nn.EmbeddingBag(9, 6), nn.GRUCell(6, 5), nn.Bilinear(5, 5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = f = self.bag(x)
        h = f[:, :1].expand(-1, 5) * 0 + 1
        for _ in range(2):
            h = self.cell(f, h)
        return self.head(self.pair(h, h))


def test_every_layer_says_its_sizes():
    model, x = Cells(), torch.randint(9, (3, 4))
    plastic = npn.attach(model, x)
    check_grow(plastic, x)
    check_shrink(plastic, x)
    for path, expected in {
        "bag": {"embedding_dim": model.bag.weight.shape[1]},
        "cell": {"input_size": model.cell.weight_ih.shape[1], "hidden_size": model.cell.weight_hh.shape[1]},
        "pair": dict(zip(("out_features", "in1_features", "in2_features"), model.pair.weight.shape, strict=True)),
    }.items():
        found = integers(model.get_submodule(path))
        assert {name: found[name] for name in expected} == expected
