"""A resize keeps the memory format of weights, gradients and optimizer state, and what layers say of themselves."""

import pytest
import torch
from torch import nn

import npn

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def pointwise() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))


def volumes() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(3, 8, 1), nn.ReLU(), nn.Conv3d(8, 6, 2), nn.ReLU(), nn.Conv3d(6, 2, 1))


def fresh_strides(shape: torch.Size, last: bool) -> tuple[int, ...]:
    memory_format = LAST[len(shape)] if last else torch.contiguous_format
    return torch.empty(shape, memory_format=memory_format).stride()


@pytest.mark.parametrize("last", [False, True], ids=["row-major", "channels-last"])
@pytest.mark.parametrize("make, shape", [(pointwise, (2, 3, 5, 5)), (volumes, (2, 3, 4, 4, 4))], ids=["2d", "3d"])
def test_the_memory_format_is_kept(make, shape, last):
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    if last:
        model, x = model.to(memory_format=LAST[x.dim()]), x.to(memory_format=LAST[x.dim()])
    plastic = npn.attach(model, x)
    optimizer = torch.optim.Adam(plastic.weights(), lr=0.1)
    plastic.track(optimizer)
    for change in (lambda: plastic.compact(), lambda: plastic.grow({"0": 3, "2": 1})):
        optimizer.zero_grad()
        plastic.backward(lambda: model(x).square().mean())
        optimizer.step()
        plastic.close("0", [0])
        plastic.close("2", [1])
        change()
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                wanted = fresh_strides(weight.shape, last)
                state = optimizer.state[weight]
                found = {key: state[key].stride() for key in ("exp_avg", "exp_avg_sq")} | {"weight": weight.stride()}
                if x.dim() == 4:  # torch makes row-major gradients of Conv3d
                    found["grad"] = weight.grad.stride()
                assert set(found.values()) == {wanted}, (name, found)
        if x.dim() == 4:  # and its outputs
            assert model(x).stride() == fresh_strides(model(x).shape, last)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 12, 3, groups=6), nn.ConvTranspose2d(6, 12, 3, groups=6)], ids=lambda x: type(x).__name__
)
def test_the_channels_of_a_grouped_layer_follow(layer):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(12, 2, 1))
    x = torch.randn(2, 3, 7, 7)
    plastic = npn.attach(model, x)
    plastic.close(plastic.groups[0], [1, 4])
    plastic.compact()
    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 8, 4)
    plastic.grow({plastic.groups[0].name: 1})
    assert (layer.in_channels, layer.out_channels, layer.groups) == (5, 10, 5)
    assert model(x).shape[1] == 2
