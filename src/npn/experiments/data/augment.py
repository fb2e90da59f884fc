"""Random crops, flips and affine maps of whole batches, on the device that the images are on."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image by up to `pad` pixels, with zeros beyond its edges, and mirror half of them.

    This is the usual augmentation of CIFAR (pad by 4, crop 32x32 at random, flip), drawn for each image separately and
    applied with one gather per batch.

    Args:
        images: (B, C, H, W) of any type.
        generator: its state alone decides the draws.
        pad: pixels of zeros on each side before the crop.

    Returns:
        (B, C, H, W), of the same type.

    Example:
        >>> crop_and_flip(torch.ones(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])

    References:
        He, Zhang, Ren & Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.
    """
    top, left, flip = draw(images.shape[0], generator, pad)
    return moved(images, top.to(images.device), left.to(images.device), flip.to(images.device), pad)


def draw(count: int, generator: torch.Generator, pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw where each crop begins in the padded image, and which images are mirrored.

    Args:
        count: number of images.
        generator: its state alone decides the draws.
        pad: pixels of zeros on each side before the crop.

    Returns:
        First row and first column, (count,) int64 each, and (count,) bool.
    """
    device = generator.device
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator, device=device)
    flip = torch.rand(count, generator=generator, device=device) < 0.5
    return top, left, flip


def moved(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Crop the padded images at the given places, and mirror those with `flip`.

    Args:
        images: (B, C, H, W).
        top: (B,) first row of each crop, 0 to 2 * pad.
        left: (B,) first column of each crop, 0 to 2 * pad.
        flip: (B,) bool.
        pad: pixels of zeros on each side before the crop.

    Returns:
        (B, C, H, W), of the same type.
    """
    count, channels, height, width = images.shape
    device = images.device
    padded = F.pad(images, (pad, pad, pad, pad))
    across = torch.arange(width, device=device)
    columns = left[:, None] + torch.where(flip[:, None], across.flip(0), across)
    rows = top[:, None] + torch.arange(height, device=device)
    image = torch.arange(count, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def shift_turn_scale(
    images: Tensor, generator: torch.Generator, pixels: float = 2.0, degrees: float = 10.0, scale: float = 0.1
) -> Tensor:
    """Map each image by its own small affine map; beyond its edges lies the value of its first pixel.

    Shift, angle and scale are uniform within the given bounds, about the centre, with bilinear interpolation.

    Args:
        images: (B, C, H, W) floats; digits on a uniform ground, whose value the first pixel has.
        generator: its state alone decides the draws.
        pixels: largest shift along each axis.
        degrees: largest angle.
        scale: largest change of size, as a share.

    Returns:
        (B, C, H, W).

    Example:
        >>> shift_turn_scale(torch.ones(2, 1, 8, 8), torch.Generator().manual_seed(0)).unique()
        tensor([1.])
    """
    count, _, height, width = images.shape
    draws = 2 * torch.rand(4, count, generator=generator, device=generator.device) - 1
    right, down, turn, size = draws.to(images.device)
    angle, zoom = math.radians(degrees) * turn, 1 / (1 + scale * size)
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    first = torch.stack([cosine, -sine, 2 * pixels / width * right], 1)
    second = torch.stack([sine, cosine, 2 * pixels / height * down], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(images.shape), align_corners=False)
    ground = images[:, :1, :1, :1]
    moved_images = F.grid_sample(images - ground, grid.to(images.dtype), align_corners=False)
    return moved_images + ground
