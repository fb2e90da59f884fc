"""Convolutional models, tiny."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, randn


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8 * 4, 10), nn.ReLU(), nn.Dropout(0.0), nn.Linear(10, 3),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int, option: str) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.c2, self.b2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.stride, self.extra, self.option = stride, o - i, option
        if option == "B" and (stride > 1 or i != o):
            self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        h = self.b2(self.c2(F.relu(self.b1(self.c1(x)))))
        if hasattr(self, "short"):
            x = self.short(x)
        elif self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(h + x)


class ResNet(nn.Module):
    def __init__(self, option: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4, 4, 1, option), Block(4, 8, 2, option), Block(8, 8, 1, option))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.transition = nn.Conv2d(13, 5, 1)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.fc(F.adaptive_avg_pool2d(self.transition(torch.cat(features, 1)), 1).flatten(1))


class Inverted(nn.Module):
    """MobileNet block: expand, depthwise, optional squeeze-and-excite, project."""

    def __init__(self, i: int, e: int, o: int, stride: int, squeeze: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(i, e, 1, bias=False), nn.BatchNorm2d(e), act())
        self.depth = nn.Sequential(nn.Conv2d(e, e, 3, stride, 1, groups=e, bias=False), nn.BatchNorm2d(e), act())
        self.squeeze = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(e, squeeze, 1), nn.ReLU(), nn.Conv2d(squeeze, e, 1), nn.Hardsigmoid()
            )
            if squeeze
            else None
        )
        self.project = nn.Sequential(nn.Conv2d(e, o, 1, bias=False), nn.BatchNorm2d(o))
        self.residual = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        h = self.depth(self.expand(x))
        if self.squeeze is not None:
            h = h * self.squeeze(h)
        h = self.project(h)
        return x + h if self.residual else h


def mobile(squeeze: int, act: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), act(), Inverted(4, 8, 6, 2, squeeze, act),
        Inverted(6, 10, 6, 1, squeeze, act), nn.Conv2d(6, 12, 1), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


class Shuffle(nn.Module):
    """ShuffleNet unit: grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.g1, self.n1 = nn.Conv2d(8, 12, 1, groups=2), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.g2 = nn.Conv2d(12, 8, 1, groups=2)
        self.fc = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = F.relu(self.n1(self.g1(x)))
        n, c, a, b = h.shape
        h = h.view(n, 2, c // 2, a, b).transpose(1, 2).reshape(n, c, a, b)
        return self.fc((x + self.g2(self.depth(h))).mean((2, 3)))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.one = nn.Conv2d(5, 3, 1)
        self.three = nn.Sequential(nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(5, 2, 1))
        self.head = nn.Conv2d(11, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(torch.cat([self.one(x), self.three(x), self.pool(x)], 1))).amax((2, 3))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 8, 3, padding=1)
        self.up1, self.c = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, 6, 3, padding=1)
        self.up2, self.d = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        m = F.relu(self.middle(F.max_pool2d(b, 2)))
        c = F.relu(self.c(torch.cat([self.up1(m), b], 1)))
        return self.out(F.relu(self.d(torch.cat([self.up2(c), a], 1))))


class ChannelsLast(nn.Module):
    """NHWC code: features last, flattened as height, width, channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)
        self.fc1, self.fc2 = nn.Linear(4 * 4 * 5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        h = torch.tanh(self.dense(torch.relu(h)))
        return self.fc2(torch.relu(self.fc1(h.flatten(1))))


def audio() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 6, 5, 2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 8, 3, dilation=2), nn.PReLU(8), nn.AvgPool1d(2),
        nn.Conv1d(8, 5, 3, padding=1), nn.AdaptiveAvgPool1d(3), nn.Flatten(), nn.Linear(15, 4),
    )  # fmt: skip


def video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 6, 2), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.depth, self.norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)
        self.gamma = nn.Parameter(torch.rand(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.norm(self.depth(x).permute(0, 2, 3, 1))
        h = self.gamma * self.down(F.gelu(self.up(h)))
        return self.head((x + h.permute(0, 3, 1, 2)).mean((2, 3)))


class Normalised(nn.Module):
    """GroupNorm, grouped convolution, InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.point, self.grouped = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.last, self.inst = nn.Conv2d(12, 6, 1), nn.InstanceNorm2d(6, affine=True)
        self.fc = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)))
        h = F.relu(self.grouped(self.point(h)))
        return self.fc(self.inst(self.last(h)).flatten(1))


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 5, 3), nn.Linear(5 * 36, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x)).view(-1, 180)
        return self.fc2(F.relu(self.fc1(h)))


class Pixels(nn.Module):
    """Super-resolution: residual trunk, pixel shuffle, bilinear skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Conv2d(6, 12, 3, padding=1),
        )
        self.out = nn.Conv2d(3, 1, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.a(x), 0.1)
        h = F.pixel_shuffle(F.leaky_relu(self.c(h + self.b(h)), 0.1), 2)
        return self.out(h) + F.interpolate(x, scale_factor=2, mode="bilinear")


CONV = {
    "vgg": Entry(
        vgg,
        randn(4, 3, 8, 8),
        {"0": 6, "3": 6, "7": 8, "12": 10},
        {"15.weight[0]": "it is the model's output", "0.weight[1]": "it reads an input of fixed size"},
    ),
    "resnet_projection": Entry(
        lambda: ResNet("B"),
        randn(4, 3, 8, 8),
        {"conv": 4, "blocks.0.c1": 4, "blocks.1.c1": 8, "blocks.1.c2": 8, "blocks.2.c1": 8},
        {"fc.weight[0]": "it is the model's output", "conv.weight[1]": "it reads an input of fixed size"},
    ),
    "resnet_option_a": Entry(
        lambda: ResNet("A"),
        randn(4, 3, 8, 8),
        {"conv": 4, "blocks.0.c1": 4, "blocks.1.c1": 8, "blocks.2.c1": 8},
        {
            "blocks.1.c2.weight[0]": "added to zero padding",
            "fc.weight[0]": "it is the model's output",
            "conv.weight[1]": "it reads an input of fixed size",
        },
    ),
    "densenet": Entry(
        DenseNet,
        randn(4, 3, 6, 6),
        {"stem": 4, "convs.0": 3, "convs.1": 3, "convs.2": 3, "transition": 5},
        {"fc.weight[0]": "it is the model's output", "stem.weight[1]": "it reads an input of fixed size"},
    ),
    "mobilenet_v2": Entry(
        lambda: mobile(0, nn.ReLU6),
        randn(4, 3, 12, 12),
        {"0": 4, "3.expand.0": 8, "3.project.0": 6, "4.expand.0": 10, "5": 12},
        {"9.weight[0]": "it is the model's output", "0.weight[1]": "it reads an input of fixed size"},
    ),
    "mobilenet_v3": Entry(
        lambda: mobile(3, nn.Hardswish),
        randn(4, 3, 12, 12),
        {"0": 4, "3.expand.0": 8, "3.squeeze.1": 3, "3.project.0": 6, "4.expand.0": 10, "4.squeeze.1": 3, "5": 12},
        {"9.weight[0]": "it is the model's output", "0.weight[1]": "it reads an input of fixed size"},
    ),
    "shufflenet": Entry(
        Shuffle,
        randn(4, 3, 6, 6),
        {"stem": 4, "g1": 3, "fc.0": 6},
        {"fc.2.weight[0]": "it is the model's output", "stem.weight[1]": "it reads an input of fixed size"},
    ),
    "inception": Entry(
        Inception,
        randn(3, 3, 6, 6),
        {"stem": 5, "one": 3, "three.0": 4, "three.2": 6, "pool.1": 2},
        {"head.weight[0]": "it is the model's output", "stem.weight[1]": "it reads an input of fixed size"},
    ),
    "unet": Entry(
        UNet,
        randn(2, 2, 8, 8),
        {"a": 4, "b": 6, "middle": 8, "up1": 6, "c": 6, "up2": 4, "d": 4},
        {"a.weight[1]": "it reads an input of fixed size"},
    ),
    "nhwc": Entry(
        ChannelsLast,
        randn(3, 4, 4, 3),
        {"conv": 6, "dense": 5, "fc1": 7},
        {"fc2.weight[0]": "it is the model's output", "conv.weight[1]": "it reads an input of fixed size"},
    ),
    "audio": Entry(
        audio,
        randn(4, 1, 40),
        {"0": 6, "3": 8, "6": 5},
        {"9.weight[0]": "it is the model's output"},
    ),
    "video": Entry(
        video,
        randn(3, 2, 4, 6, 6),
        {"0": 4, "4": 6},
        {"8.weight[0]": "it is the model's output", "0.weight[1]": "it reads an input of fixed size"},
    ),
    "convnext": Entry(
        ConvNeXt,
        randn(3, 3, 8, 8),
        {"up": 16},
        {
            "stem.weight[0]": "native_layer_norm mixes every unit of the axis",
            "head.weight[0]": "it is the model's output",
            "stem.weight[1]": "it reads an input of fixed size",
        },
    ),
    "group_norm": Entry(
        Normalised,
        randn(3, 3, 4, 4),
        {"conv": 4, "point": 4, "grouped": 4, "last": 6},
        {"fc.weight[0]": "it is the model's output", "conv.weight[1]": "it reads an input of fixed size"},
    ),
    "hard_coded_view": Entry(
        HardCoded,
        randn(3, 1, 8, 8),
        {"fc1": 8},
        {"fc2.weight[0]": "it is the model's output", "conv.weight[0]": "the code fixes this size"},
    ),
    "super_resolution": Entry(
        Pixels,
        randn(2, 1, 6, 6),
        {"a": 6, "c": 3},
        {},
    ),
}
