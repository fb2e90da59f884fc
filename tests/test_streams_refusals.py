"""Norms over a stream that cannot be followed: an error or a frozen dimension, never a wrong result."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import npn
from npn.errors import CheckpointError, PlasticityError, TraceError

pytestmark = pytest.mark.usefixtures("traces_are_shared")


class Recomputed(nn.Module):
    """A checkpoint of a function that normalises, which is computed again outside of any module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.checkpoint: bool | None = None

    def block(self, h: Tensor) -> Tensor:
        return h + self.inner(F.layer_norm(h, (h.shape[-1],))).relu()

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.checkpoint is None:
            h = self.block(h)
        else:
            h = torch.utils.checkpoint.checkpoint(self.block, h, use_reentrant=self.checkpoint)
        return self.head(F.layer_norm(h, (h.shape[-1],)))


def test_a_model_of_nothing_but_streams_is_told_of_them() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    advice = r"streams=True gives units under a norm or a mean gates, see docs/streams\.md$"
    with pytest.raises(TraceError, match=r"^nothing in the model can be resized: 0\.weight\[0\]: .*" + advice):
        npn.attach(model, torch.randn(4, 3))
    assert [g.name for g in npn.attach(model, torch.randn(4, 3), streams=True).groups] == ["0"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_norm_that_a_checkpoint_computes_again_outside_of_a_module_is_an_error(reentrant: bool) -> None:
    model, x = Recomputed(), torch.randn(4, 3)
    plastic = npn.attach(model, x, streams=True)
    plastic.close("embed", [0])
    model.checkpoint = reentrant
    with pytest.raises(
        PlasticityError, match=r"^a checkpoint inside the forward pass of the model computes layer_norm"
    ):
        plastic.backward(lambda: model(x).square().mean())
    model.checkpoint = None
    plastic.backward(lambda: model(x).square().mean())


@pytest.mark.parametrize("reentrant", [False, True])
def test_such_a_stream_is_frozen_if_the_trace_sees_the_checkpoint(reentrant: bool) -> None:
    model = Recomputed()
    model.checkpoint = reentrant
    with pytest.raises(
        TraceError, match=r"^nothing in the model can be resized: embed.weight\[0\]: native_layer_norm mixes"
    ):
        npn.attach(model, torch.randn(4, 3), streams=True)


class Choosing(nn.Module):
    """Takes a sum before it normalises: in train mode only, or once it is asked to."""

    def __init__(self, by_mode: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 6), nn.Linear(6, 2)
        self.by_mode, self.asked = by_mode, False

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.training if self.by_mode else self.asked:
            h = h - h.sum(-1, keepdim=True)
        return self.head(F.layer_norm(h, (h.shape[-1],)))


def test_another_order_of_norms_than_the_traced_one_is_an_error() -> None:
    model, x = Choosing(by_mode=False).eval(), torch.randn(4, 3)
    plastic = npn.attach(model, x, streams=True)
    plastic.close("embed", [0])
    small = plastic.export()
    torch.testing.assert_close(model(x), small(x))
    model.asked = True
    with pytest.raises(
        PlasticityError, match=r"the model has another order of norms than it had .* found sum of shape"
    ):
        model(x)
    model.asked = False
    torch.testing.assert_close(model(x), small(x))


@pytest.mark.parametrize("training", [False, True])
def test_another_order_of_norms_in_the_other_mode_freezes_their_units(training: bool) -> None:
    with pytest.raises(TraceError, match=r"embed.weight\[0\]: in (train|eval)\(\) other norms are computed over it"):
        npn.attach(Choosing(by_mode=True).train(training), torch.randn(4, 3), streams=True)


def test_what_cannot_be_followed_keeps_its_size_and_says_so() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def size(self, n: int) -> tuple[int, ...]:
            return (self.c.weight.shape[1],)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.layer_norm(self.b(F.layer_norm(self.a(x), (6,)).softmax(-1)), self.size(8)))

    plastic = npn.attach(Model(), torch.zeros(2, 3), streams=True)
    assert [group.name for group in plastic.groups] == ["b"]
    assert any("softmax mixes every unit" in frozen.reason for frozen in plastic.frozen)


class Shuffled(nn.Module):
    """A channel shuffle in front of a norm: units that come and go in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(x)).view(len(x), 2, -1).transpose(1, 2).flatten(1)
        return self.head(self.norm(h))


def test_a_closed_unit_that_stays_under_a_norm_is_not_exported() -> None:
    x = torch.randn(5, 3)
    plastic = npn.attach(Shuffled(), x, streams=True)
    plastic.close("embed", [1, 2, 3])
    with pytest.raises(PlasticityError, match=r"units \[\d\] of 'embed' have to stay, .* sets of 2 can go"):
        plastic.export()
    plastic.close("embed", [4])
    masked = plastic.model(x)
    assert torch.allclose(plastic.export()(x), masked, atol=1e-6)


def test_a_model_without_gates_refuses_closed_units_under_a_norm(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(5, 3)
    plain = copy.deepcopy(model)
    plastic = npn.attach(model, x, streams=True)
    plastic.close("0", [1, 4])
    npn.save(tmp_path / "a.npn", plastic)
    with pytest.raises(CheckpointError, match=r"has closed units of '0' under a norm.*save after plastic.compact"):
        npn.load(tmp_path / "a.npn", plain)
    plastic.compact()
    npn.save(tmp_path / "a.npn", plastic)
    assert torch.equal(npn.load(tmp_path / "a.npn", plain)(x), model(x))
