"""The residual networks: sizes from the literature, shortcuts, widths."""

import pytest
import torch

import npn
from npn.errors import ConfigurationError
from npn.experiments.resnet.model import Block, ResNet, Strided

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])  # He et al., Table 6
def test_parameters_are_those_of_the_literature(depth, millions):
    model = ResNet(depth)
    assert npn.count_params(model) / 1e6 == pytest.approx(millions, abs=0.05 if depth == 110 else 0.005)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) + 1 == depth


def test_both_conventions_of_resnet56():
    """By hand: 27 * 16 in the stem, 9 C^2 in each convolution, 640 at the end; the paper's 0.85 M and 125.5 M."""
    option_a, option_b = ResNet(56).eval(), ResNet(56, projection=True).eval()
    weights = 27 * 16 + 9 * (18 * 16**2 + 16 * 32 + 17 * 32**2 + 32 * 64 + 17 * 64**2) + 640
    assert npn.count_params(option_a, biases=False) == weights
    assert npn.count_params(option_b, biases=False) == weights + 16 * 32 + 32 * 64
    assert round(npn.count_macs(option_a, IMAGE) / 1e6, 1) == 125.5
    assert npn.count_macs(option_b, IMAGE) - npn.count_macs(option_a, IMAGE) == 2 * 16 * 32 * 256


def test_the_shortcut_without_parameters():
    x = torch.randn(2, 3, 6, 6)
    out = Strided(3)(x)
    assert out.shape == (2, 6, 3, 3)
    assert torch.equal(out[:, 1:4], x[:, :, ::2, ::2]) and not out[:, :1].any() and not out[:, 4:].any()


@pytest.mark.parametrize("projection", [False, True])
def test_a_block_without_inside_is_its_shortcut(projection):
    block = Block(4, 8, 5, 2, projection).eval()
    torch.nn.init.zeros_(block.branch.bn2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), torch.relu(block.shortcut(x)))


def test_widths():
    narrow = ResNet(20, 100, width=0.2, stream=False)
    assert [b.branch.conv1.out_channels for b in narrow.blocks] == [3, 3, 3, 6, 6, 6, 13, 13, 13]
    assert narrow.conv1.out_channels == 16 and narrow.fc.weight.shape == (100, 64)
    thin = ResNet(8, width=0.2, projection=True)
    assert thin.conv1.out_channels == 3 and thin.fc.in_features == 13
    assert thin(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_depths_that_cannot_be(depth):
    with pytest.raises(ConfigurationError) as error:
        ResNet(depth)
    assert str(error.value) == f"depth must be 6n + 2 and at least 8, such as 20, 32, 56 or 110, got {depth}"
    with pytest.raises(ConfigurationError) as error:
        ResNet(8, width=0.0)
    assert str(error.value) == "width must be above 0, got 0.0"
