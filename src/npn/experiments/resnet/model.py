"""Residual networks for 32x32 images, with shortcuts that have no parameters or with projections."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from npn.errors import ConfigurationError

WIDTHS = (16, 32, 64)  # channels of the three sections, at full width


class Strided(nn.Module):
    """The shortcut without parameters (option A): every second pixel, and zeros for the new channels.

    Half of the zeros come before the old channels, half after them.

    Args:
        more: output channels minus input channels.
    """

    def __init__(self, more: int) -> None:
        super().__init__()
        self.before = more // 2
        self.after = more - more // 2

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, C + more, H / 2, W / 2).

        Args:
            x: (B, C, H, W).
        """
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Branch(nn.Module):
    """The branch that a block adds to its shortcut: bn(conv(relu(bn(conv(x))))), with 3x3 convolutions.

    Args:
        old: channels in.
        new: channels out.
        middle: channels between the convolutions.
        stride: of the first convolution.
    """

    def __init__(self, old: int, new: int, middle: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(old, middle, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, new, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(new)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, new, H / stride, W / stride).

        Args:
            x: (B, old, H, W).
        """
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return out


class Block(nn.Module):
    """relu(shortcut(x) + branch(x)).

    Args:
        old: channels in.
        new: channels out.
        middle: channels inside the branch.
        stride: of the branch's first convolution.
        projection: where the shape changes, the shortcut is a strided 1x1 convolution with BatchNorm (option B)
            instead of `Strided` (option A).
    """

    def __init__(self, old: int, new: int, middle: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.stride = stride
        self.branch = Branch(old, new, middle, stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or old != new:
            self.shortcut = (
                nn.Sequential(nn.Conv2d(old, new, 1, stride=stride, bias=False), nn.BatchNorm2d(new))
                if projection
                else Strided(new - old)
            )

    @property
    def projects(self) -> bool:
        """Whether the shortcut has parameters."""
        return isinstance(self.shortcut, nn.Sequential)

    @property
    def more(self) -> int:
        """Output channels of the shortcut minus its input channels."""
        if isinstance(self.shortcut, Strided):
            return self.shortcut.before + self.shortcut.after
        first = self.shortcut[0] if isinstance(self.shortcut, nn.Sequential) else None
        return first.out_channels - first.in_channels if isinstance(first, nn.Conv2d) else 0

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, new, H / stride, W / stride).

        Args:
            x: (B, old, H, W).
        """
        return F.relu(self.shortcut(x) + self.branch(x))


class ResNet(nn.Module):
    """A residual network of depth 6n + 2 for (B, 3, 32, 32): stem, three sections of n blocks, mean, linear.

    Args:
        depth: 6n + 2; 20, 32, 56 and 110 are those of the literature.
        classes: logits per image.
        projection: shortcuts with parameters where the shape changes, see `Block`.
        width: share of the channels, at least one per layer; expansion starts with a small one.
        stream: apply `width` to the channels of the residual streams, too; else to the blocks' inner channels only.

    Raises:
        ConfigurationError: the depth is not 6n + 2, or the width is not above 0.

    Example:
        >>> from npn import count_params
        >>> f"{count_params(ResNet(56), biases=False):,}"
        '848,944'

    References:
        He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """

    def __init__(
        self, depth: int = 56, classes: int = 10, *, projection: bool = False, width: float = 1.0, stream: bool = True
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigurationError(f"depth must be 6n + 2 and at least 8, such as 20, 32, 56 or 110, got {depth}")
        if not width > 0:
            raise ConfigurationError(f"width must be above 0, got {width}")
        inner = [scaled(channels, width) for channels in WIDTHS]
        outer = inner if stream else list(WIDTHS)
        self.conv1 = nn.Conv2d(3, outer[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer[0])
        blocks: list[nn.Module] = []
        for section, (new, middle) in enumerate(zip(outer, inner, strict=True)):
            for number in range((depth - 2) // 6):
                first = section > 0 and number == 0
                blocks.append(Block(outer[section - 1] if first else new, new, middle, 1 + first, projection))
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(outer[-1], classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, classes).

        Args:
            x: (B, 3, 32, 32) images.
        """
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def channels(
        self, open_units: Mapping[str, int], closed: Collection[str] = ()
    ) -> tuple[list[int], list[tuple[int, int, int, Block]]]:
        """Count the open channels.

        Args:
            open_units: as `npn.Plasticity.sizes` gives them; all channels without a gate count as open.
            closed: paths of closed branches.

        Returns:
            Channels of the three streams; and `(in, out, inside, block)` of every block, with 0 inside if the branch is
            closed or removed.
        """
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        per = len(blocks) // len(WIDTHS)
        width = self.conv1.out_channels
        streams = [open_units.get("conv1", width)]
        for section in range(1, len(WIDTHS)):
            width += blocks[section * per].more
            streams.append(open_units.get(f"blocks.{section * per}.branch.conv2", width))
        found = []
        for number, block in enumerate(blocks):
            section, first = divmod(number, per)
            old = streams[max(0, section - (first == 0))]
            path, middle = f"blocks.{number}.branch", 0
            if path not in closed and isinstance(block.branch, Branch):
                middle = open_units.get(f"{path}.conv1", block.branch.conv1.out_channels)
            found.append((old, streams[section], middle, block))
        return streams, found


def scaled(channels: int, width: float) -> int:
    """Compute a share of some channels, at least one.

    Args:
        channels: at full width.
        width: share.

    Example:
        >>> [scaled(channels, 0.2) for channels in WIDTHS]
        [3, 6, 13]
    """
    return max(1, round(width * channels))


def _initialise(module: nn.Module) -> None:
    """Initialise convolutions as He et al. (2015) do."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
