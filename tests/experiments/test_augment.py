"""Augmentation against a loop over single images."""

import pytest
import torch

from npn.experiments.data.augment import crop_and_flip, draw, moved, shift_turn_scale


def by_hand(images, top, left, flip, pad):
    found = []
    for image, t, l, f in zip(images, top.tolist(), left.tolist(), flip.tolist(), strict=True):  # noqa: E741
        channels, height, width = image.shape
        canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=image.dtype)
        canvas[:, pad : pad + height, pad : pad + width] = image
        crop = canvas[:, t : t + height, l : l + width]
        found.append(torch.stack([column for column in reversed(crop.unbind(2))], 2) if f else crop)
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("shape", "pad"), [((7, 3, 32, 32), 4), ((5, 1, 6, 9), 2), ((1, 2, 4, 4), 0)])
def test_as_a_loop_over_single_images(shape, pad, dtype):
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = images.clone()
    for seed in range(3):
        drawn = draw(shape[0], torch.Generator().manual_seed(seed), pad)
        expected = by_hand(images, *drawn, pad)
        found = crop_and_flip(images, torch.Generator().manual_seed(seed), pad)
        assert found.dtype == dtype and torch.equal(found, expected)
    assert torch.equal(images, before)


def test_the_middle_is_the_image_itself_and_its_mirror():
    images = torch.rand(2, 3, 8, 8)
    centre = torch.full((2,), 4)
    out = moved(images, centre, centre, torch.tensor([False, True]), 4)
    assert torch.equal(out[0], images[0]) and torch.equal(out[1], images[1].flip(2))


def test_every_place_is_drawn_equally_often():
    top, left, flip = draw(81_000, torch.Generator().manual_seed(0), 4)
    counts = torch.bincount(9 * top + left, minlength=81)
    assert len(counts) == 81
    # chi-squared with 80 degrees of freedom: above 130 in 4 of 10,000 draws, and this one is fixed
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 130
    assert float(flip.float().mean()) == pytest.approx(0.5, abs=0.01)  # 5.7 standard deviations


def test_the_draws_follow_from_the_generator_alone():
    images = torch.rand(6, 3, 8, 8)
    generator = torch.Generator().manual_seed(5)
    first, second = crop_and_flip(images, generator), crop_and_flip(images, generator)
    torch.manual_seed(123)
    assert torch.equal(crop_and_flip(images, torch.Generator().manual_seed(5)), first)
    assert not torch.equal(first, second)


def test_affine_maps_follow_the_generator_and_keep_the_ground():
    images = torch.full((6, 1, 28, 28), -0.4)
    images[:, :, 10:18, 12:16] = 2.0
    first, again = (shift_turn_scale(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])
    assert torch.equal(shift_turn_scale(images, torch.Generator(), 0.0, 0.0, 0.0).round(decimals=4), images)
    assert torch.allclose(first[:, :, :3], torch.tensor(-0.4)), "beyond the edges lies the ground"
    mass, moved = (images + 0.4).sum((1, 2, 3)), (first + 0.4).sum((1, 2, 3))
    assert bool(((moved / mass - 1).abs() < 0.25).all()), "at most a tenth larger or smaller along each axis"


def test_a_shift_alone_moves_by_at_most_so_many_pixels():
    images = torch.zeros(50, 1, 28, 28)
    images[:, :, 14, 14] = 1.0
    moved = shift_turn_scale(images, torch.Generator().manual_seed(0), 2.0, 0.0, 0.0)
    rows = (moved.sum(3) * torch.arange(28.0)).sum((1, 2)) - 14
    assert float(rows.abs().max()) <= 2.0 and float(rows.std()) > 0.8
    assert torch.allclose(moved.sum((1, 2, 3)), torch.ones(50), atol=1e-5)
