"""What the augmentation pipe draws, over many images."""

import math

import numpy as np
import pytest
import torch

from tests.pipes import make_pipe
from tests.speed import slow_except

P = 0.3
# The share of images that change at probability p on 8x8 images. Some draws are the identity:
# half of the mirrorings, a quarter of the quarter turns, translations that round to no pixel (an
# interval of one pixel in a range of two, on each of two axes). Four bands are drawn on their own.
EXPECTED_SHARE = {
    "xflip": P / 2,
    "rotate90": P * 3 / 4,
    "xint": P * (1 - 1 / 2**2),
    "scale": P,
    "rotate": P,
    "aniso": P,
    "xfrac": P,
    "brightness": P,
    "contrast": P,
    "lumaflip": P / 2,
    "hue": P,
    "saturation": P,
    "imgfilter": 1 - (1 - P) ** 4,
    "noise": P,
    "cutout": P,
}
WARPING = {"rotate90", "xint", "rotate", "aniso", "xfrac"}  # takes long; xflip and scale stay


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def share_changed(pipe, images):
    return ((pipe(images) - images).abs().amax(dim=[1, 2, 3]) > 1e-4).double().mean().item()


def assert_share(share, expected, count):
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def assert_moments(samples, std):
    """Check mean zero and a standard deviation, within about four standard errors."""
    assert abs(samples.mean()) < 4 * std / math.sqrt(len(samples))
    assert abs(samples.std() / std - 1) < 4 / math.sqrt(2 * len(samples))


# Probabilities.


@pytest.mark.parametrize("name", slow_except(EXPECTED_SHARE.keys() - WARPING, EXPECTED_SHARE))
def test_share_of_changed_images(name):
    x = torch.rand([3000, 3, 8, 8]) * 2 - 1
    assert_share(share_changed(make_pipe(P, **{name: 1}), x), EXPECTED_SHARE[name], len(x))


def test_strength_multiplies_p():
    x = torch.rand([3000, 3, 8, 8])
    assert_share(share_changed(make_pipe(0.6, contrast=0.5), x), 0.3, len(x))


def test_band_strength_multiplies_p():
    x = torch.rand([3000, 3, 8, 8])
    pipe = make_pipe(0.6, imgfilter=0.5, imgfilter_bands=[0.5, 0, 1, 0])
    assert_share(share_changed(pipe, x), 1 - (1 - 0.15) * (1 - 0.3), len(x))


def test_augmentations_are_drawn_apart():
    x = torch.rand([3000, 3, 8, 8])
    pipe = make_pipe(P, brightness=1, scale=1, cutout=1)
    assert_share(share_changed(pipe, x), 1 - (1 - P) ** 3, len(x))


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_rotation_is_sure_from_p_one_on(p):
    x = torch.rand([200, 1, 8, 8])
    assert share_changed(make_pipe(p, rotate=1), x) == 1


def test_images_are_drawn_apart():
    x = torch.rand([1, 3, 16, 16]).repeat(50, 1, 1, 1)
    y = make_pipe(1, **dict.fromkeys(EXPECTED_SHARE, 1))(x).flatten(1)
    distances = torch.cdist(y, y) + torch.eye(50)
    assert distances.min() > 1e-3


# Geometry.


def draw_lookups(count=1000, size=16, **kwargs):
    """Recover the maps from output to input coordinates, [N, 2, 3], from images of coordinates."""
    ramp = torch.arange(size) - (size - 1) / 2
    x = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy"))
    y = make_pipe(1, **kwargs)(x.repeat(count, 1, 1, 1))
    # Slopes over an even distance, which the two phases of the upsampled image do not disturb.
    middle = size // 2
    slopes = [
        (y[:, :, middle, middle + 1] - y[:, :, middle, middle - 1]) / 2,
        (y[:, :, middle + 1, middle] - y[:, :, middle - 1, middle]) / 2,
    ]
    shift = y[:, :, middle - 1 : middle + 1, middle - 1 : middle + 1].mean(dim=[2, 3])
    return torch.stack([*slopes, shift], dim=2)


def test_scale_is_isotropic_and_lognormal():
    maps = draw_lookups(scale=1)
    assert_moments(-torch.log2(maps[:, 0, 0]), 0.2)
    torch.testing.assert_close(maps[:, 1, 1], maps[:, 0, 0], rtol=0, atol=1e-3)
    torch.testing.assert_close(maps[:, 0, 1:], torch.zeros(1000, 2), rtol=0, atol=0.1)


def test_aniso_keeps_the_area_and_is_lognormal():
    maps = draw_lookups(aniso=1)
    assert_moments(torch.log2(maps[:, 1, 1]), 0.2)
    torch.testing.assert_close(maps[:, 0, 0] * maps[:, 1, 1], torch.ones(1000), rtol=0, atol=0.1)


def test_rotation_is_uniform_and_rigid():
    maps = draw_lookups(rotate=1)
    angles = torch.atan2(maps[:, 1, 0], maps[:, 0, 0])
    assert torch.stack([angles.cos(), angles.sin()]).mean(dim=1).abs().max() < 0.1
    products = maps[:, :, :2] @ maps[:, :, :2].transpose(1, 2)
    torch.testing.assert_close(products, torch.eye(2).expand(1000, 2, 2), rtol=0, atol=0.15)


def test_rotate_max_limits_the_angle():
    maps = draw_lookups(rotate=1, rotate_max=0.1)
    angles = torch.atan2(maps[:, 1, 0], maps[:, 0, 0])
    # Two rotations of 0.1 pi at most each.
    assert 0.15 * math.pi < angles.abs().max() < 0.21 * math.pi


def test_fractional_translation_is_normal():
    maps = draw_lookups(xfrac=1, xfrac_std=0.05)
    assert_moments(maps[:, 0, 2] / 16, 0.05)
    assert_moments(maps[:, 1, 2] / 16, 0.05)
    assert abs(torch.corrcoef(maps[:, :, 2].T)[0, 1]) < 0.1


def test_integer_translation_is_within_its_range():
    maps = draw_lookups(xint=1)
    steps = maps[:, :, 2]
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert set(steps.round().int().flatten().tolist()) == {-2, -1, 0, 1, 2}


# Colours.


def split_luma(images):
    """Luma [N, H, W] and chroma [N, 3, H, W] of RGB images."""
    luma = images.mean(dim=1)
    return luma, images - luma[:, None]


def draw_colors(**kwargs):
    x = torch.rand([2000, 3, 2, 2]) * 2 - 1
    return x, make_pipe(1, **kwargs)(x)


def test_brightness_shifts_all_channels_alike():
    x, y = draw_colors(brightness=1)
    shift = (y - x)[:, 0, 0, 0]
    torch.testing.assert_close(y, x + shift[:, None, None, None])
    assert_moments(shift, 0.2)


def test_contrast_is_one_lognormal_factor():
    x, y = draw_colors(contrast=1)
    factor = y.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    torch.testing.assert_close(y, x * factor[:, None, None, None])
    assert_moments(torch.log2(factor), 0.5)


def test_lumaflip_mirrors_luma_and_keeps_chroma():
    x, y = draw_colors(lumaflip=1)
    (luma_x, chroma_x), (luma_y, chroma_y) = split_luma(x), split_luma(y)
    torch.testing.assert_close(chroma_y, chroma_x)
    torch.testing.assert_close(luma_y.abs(), luma_x.abs())
    assert_share((luma_y * luma_x < 0).all(dim=2).all(dim=1).double().mean(), 0.5, len(x))


def hue_angles(x, y):
    """Angles about the luma axis from x to y, [N]."""
    axis = torch.full([3, 1, 1], 1 / math.sqrt(3))
    (_, a), (_, b) = split_luma(x), split_luma(y)
    sine = (torch.linalg.cross(a, b, dim=1) * axis).sum(dim=[1, 2, 3])
    return torch.atan2(sine, (a * b).sum(dim=[1, 2, 3]))


def test_hue_keeps_luma_and_rotates_chroma_uniformly():
    x, y = draw_colors(hue=1)
    (luma_x, chroma_x), (luma_y, chroma_y) = split_luma(x), split_luma(y)
    torch.testing.assert_close(luma_y, luma_x)
    torch.testing.assert_close(chroma_y.norm(dim=1), chroma_x.norm(dim=1))
    quarters = torch.histc(hue_angles(x, y), bins=4, min=-math.pi, max=math.pi) / len(x)
    for quarter in quarters.tolist():
        assert_share(quarter, 0.25, len(x))


def test_hue_max_limits_the_angle():
    x, y = draw_colors(hue=1, hue_max=0.5)
    largest = hue_angles(x, y).abs().max()
    assert 0.49 * math.pi < largest < 0.5001 * math.pi


def test_saturation_keeps_luma_and_scales_chroma():
    x, y = draw_colors(saturation=1)
    (luma_x, chroma_x), (luma_y, chroma_y) = split_luma(x), split_luma(y)
    torch.testing.assert_close(luma_y, luma_x)
    factor = chroma_y.flatten(1).norm(dim=1) / chroma_x.flatten(1).norm(dim=1)
    torch.testing.assert_close(chroma_y, chroma_x * factor[:, None, None, None])
    assert_moments(torch.log2(factor), 1)


@pytest.mark.parametrize("name", ["hue", "saturation"])
def test_chroma_changes_nothing_in_grey_images(name):
    x = torch.rand([20, 1, 8, 8])
    torch.testing.assert_close(make_pipe(1, **{name: 1})(x), x)


# Filtering, noise, cutout.


@pytest.mark.parametrize("band", range(4))
def test_filter_gains_keep_the_expected_power(band):
    pipe = make_pipe(1, imgfilter=1, imgfilter_bands=np.eye(4)[band])
    # A constant image lies in the lowest band, whose gain it is multiplied by for each axis.
    low = pipe(torch.ones([2000, 1, 2, 2], dtype=torch.float64))[:, 0, 0, 0]
    # Before the norm, the lowest band has 10 shares of the power and each other band has one.
    gain = torch.sqrt(3 * low / (13 - 10 * low) if band == 0 else 13 / low - 12)
    assert_moments(torch.log2(gain), 1)


def test_noise_level_is_half_normal():
    y = make_pipe(1, noise=1)(torch.zeros([1000, 1, 16, 16]))
    level = y.std(dim=[1, 2, 3])
    assert abs(level.square().mean().sqrt() / 0.1 - 1) < 0.1
    assert abs(level.mean() / (0.1 * math.sqrt(2 / math.pi)) - 1) < 0.1
    assert abs(y.mean()) < 1e-3


def test_cutout_zeroes_one_rectangle():
    x = torch.ones([500, 3, 16, 16])
    zero = make_pipe(1, cutout=1)(x) == 0
    assert torch.equal(zero.all(dim=1), zero.any(dim=1))
    rows, columns = zero[:, 0].any(dim=2).sum(dim=1), zero[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, zero[:, 0].sum(dim=[1, 2]))
    # Half a side is outside if the centre is at the border.
    assert rows.min() == columns.min() == 4 and rows.max() == columns.max() == 8
