"""The differentiable augmentation pipe of adaptive discriminator augmentation (ADA).

Source: Karras et al., "Training generative adversarial networks with limited data", NeurIPS 2020,
appendix B (called *the paper* below). The pipe applies, in this order, pixel blitting, general
geometric transformations, colour transformations, image-space filtering, noise and cutout. Each
augmentation is drawn for each image on its own and applied with probability strength * p.

Network snapshots carry the source of this file, so it imports nothing of the project beyond what
the official StyleGAN2-ADA repository offers too.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torch_utils import misc, persistence
from torch_utils.ops import conv2d_gradfix, grid_sample_gradfix, upfirdn2d

# Low-pass decomposition filters of two orthogonal wavelets (Daubechies, "Ten lectures on
# wavelets", symlets with 6 and 2 vanishing moments; sum sqrt(2)).
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)

# Share of the power of natural images (1/f spectrum) in each band of the filter bank, lowest first.
_BAND_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)

# Reflected margins grow up to the image size less one, or up to this many pixels if that is less:
# on tiny images one reflection would not even cover the footprint of the wavelet filter.
_SMALLEST_MARGIN_LIMIT = 15


@persistence.persistent_class
class AugmentPipe(torch.nn.Module):
    """All augmentations of ADA as one differentiable module.

    Each of `xflip`, `rotate90`, `xint`, `scale`, `rotate`, `aniso`, `xfrac`, `brightness`,
    `contrast`, `lumaflip`, `hue`, `saturation`, `imgfilter`, `noise` and `cutout` is the strength
    of that augmentation: 0 leaves it out, otherwise it is applied with probability strength * p.

    Buffers: `p`, the overall probability (float32 scalar, 1 until somebody sets it); `Hz_geom`
    [12], the low-pass filter of the geometric transformations; `Hz_fbank` [4, 43], the band-pass
    filters of `imgfilter`, lowest band first.

    Args:
        xflip: Mirror left to right, half of the time.
        rotate90: Rotate by a uniform multiple of 90 degrees.
        xint, xint_max: Translate by whole pixels; range relative to the image size.
        scale, scale_std: Scale isotropically; standard deviation of log2 of the factor.
        rotate, rotate_max: Rotate by any angle; range, where 1 is the full circle.
        aniso, aniso_std: Stretch one axis and shrink the other; as for scale.
        xfrac, xfrac_std: Translate by any distance; deviation relative to the image size.
        brightness, brightness_std: Shift all channels by one value; deviation of the shift.
        contrast, contrast_std: Scale all channels by one factor; deviation of its log2.
        lumaflip: Mirror colours at the plane of zero luma, half of the time.
        hue, hue_max: Rotate colours about the luma axis; range, where 1 is the full circle.
        saturation, saturation_std: Scale the distance from that axis; deviation of log2.
        imgfilter, imgfilter_std: Amplify or weaken frequency bands; deviation of log2 of a gain.
        imgfilter_bands: Relative strength in each of the four bands, lowest first.
        noise, noise_std: Add white noise; scale of its half-normal level.
        cutout, cutout_size: Set a rectangle to zero; its sides relative to the image size.

    Raises:
        ValueError: `imgfilter_bands` does not have four entries.
    """

    p: torch.Tensor
    Hz_geom: torch.Tensor
    Hz_fbank: torch.Tensor

    def __init__(  # noqa: PLR0913 - the pickle format fixes these arguments
        self,
        xflip: float = 0,
        rotate90: float = 0,
        xint: float = 0,
        xint_max: float = 0.125,
        scale: float = 0,
        rotate: float = 0,
        aniso: float = 0,
        xfrac: float = 0,
        scale_std: float = 0.2,
        rotate_max: float = 1,
        aniso_std: float = 0.2,
        xfrac_std: float = 0.125,
        brightness: float = 0,
        contrast: float = 0,
        lumaflip: float = 0,
        hue: float = 0,
        saturation: float = 0,
        brightness_std: float = 0.2,
        contrast_std: float = 0.5,
        hue_max: float = 1,
        saturation_std: float = 1,
        imgfilter: float = 0,
        imgfilter_bands: Sequence[float] = (1, 1, 1, 1),
        imgfilter_std: float = 1,
        noise: float = 0,
        cutout: float = 0,
        noise_std: float = 0.1,
        cutout_size: float = 0.5,
    ) -> None:
        super().__init__()
        if len(imgfilter_bands) != len(_BAND_POWER):
            raise ValueError(
                f"imgfilter_bands needs {len(_BAND_POWER)} entries, got {len(imgfilter_bands)}"
            )
        self.xflip = float(xflip)
        self.rotate90 = float(rotate90)
        self.xint = float(xint)
        self.xint_max = float(xint_max)
        self.scale = float(scale)
        self.rotate = float(rotate)
        self.aniso = float(aniso)
        self.xfrac = float(xfrac)
        self.scale_std = float(scale_std)
        self.rotate_max = float(rotate_max)
        self.aniso_std = float(aniso_std)
        self.xfrac_std = float(xfrac_std)
        self.brightness = float(brightness)
        self.contrast = float(contrast)
        self.lumaflip = float(lumaflip)
        self.hue = float(hue)
        self.saturation = float(saturation)
        self.brightness_std = float(brightness_std)
        self.contrast_std = float(contrast_std)
        self.hue_max = float(hue_max)
        self.saturation_std = float(saturation_std)
        self.imgfilter = float(imgfilter)
        self.imgfilter_bands = [float(strength) for strength in imgfilter_bands]
        self.imgfilter_std = float(imgfilter_std)
        self.noise = float(noise)
        self.cutout = float(cutout)
        self.noise_std = float(noise_std)
        self.cutout_size = float(cutout_size)
        self.register_buffer("p", torch.ones([]))
        self.register_buffer("Hz_geom", torch.tensor(_lowpass(_SYM6), dtype=torch.float32))
        bank = _filter_bank(_SYM2, len(_BAND_POWER))
        self.register_buffer("Hz_fbank", torch.tensor(bank, dtype=torch.float32))

    def forward(self, images: torch.Tensor, debug_percentile: float | None = None) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: [N, C, H, W], floating point, values nominally in [-1, 1]. At least 2x2 pixels;
                C is 1 or 3 where a colour augmentation is on.
            debug_percentile: A q in (0, 1) makes the pipe deterministic: every random draw is
                replaced by its q-quantile (that of normal draws divided by sqrt(2)) and every
                augmentation that has a strength is applied, whatever p, except for the second of
                the two rotations.

        Returns:
            [N, C, H, W], dtype of `images`. Half precision is processed in float32, where
            resampling and colour matrices keep p = 0 an identity up to rounding. Twice
            differentiable with respect to `images`.

        Raises:
            ValueError: Wrong rank, size, dtype or channel count, or q outside (0, 1).
        """
        _check_batch(images, debug_percentile)
        x = images if images.dtype == torch.float64 else images.to(torch.float32)
        draw = _Draws(x, debug_percentile)
        x = self._transform_geometry(draw, x)
        x = self._transform_colors(draw, x)
        x = self._filter_bands(draw, x)
        x = self._add_noise(draw, x)
        x = self._cut_out(draw, x)
        return x.to(images.dtype)

    def _transform_geometry(self, draw: _Draws, x: torch.Tensor) -> torch.Tensor:
        """Run pixel blitting and geometric transformations as one resampling (paper, fig. 11)."""
        steps = (
            (self.xflip, self._undo_xflip),
            (self.rotate90, self._undo_rotate90),
            (self.xint, self._undo_xint),
            (self.scale, self._undo_scale),
            (self.rotate, self._undo_first_rotation),
            (self.aniso, self._undo_aniso),
            (self.rotate, self._undo_second_rotation),
            (self.xfrac, self._undo_xfrac),
        )
        # Looking up the source of each output pixel takes the inverse of the whole transformation,
        # which is the product of the inverses in reverse order.
        factors = [undo(draw, x.shape) for strength, undo in steps if strength > 0]
        return _warp(x, functools.reduce(_compose, factors), self.Hz_geom) if factors else x

    def _undo_xflip(self, draw: _Draws, _shape: torch.Size) -> torch.Tensor:
        sign = draw.gate(self.xflip * self.p, 1 - 2 * draw.integer(2), 1)
        return _scale2d(sign, 1)

    def _undo_rotate90(self, draw: _Draws, _shape: torch.Size) -> torch.Tensor:
        quarters = draw.gate(self.rotate90 * self.p, draw.integer(4), 0)
        return _rotate2d(quarters * (math.pi / 2))

    def _undo_xint(self, draw: _Draws, shape: torch.Size) -> torch.Tensor:
        chosen = draw.chosen(self.xint * self.p)
        shift_x = torch.round(draw.uniform(-self.xint_max, self.xint_max) * shape[3])
        shift_y = torch.round(draw.uniform(-self.xint_max, self.xint_max) * shape[2])
        return _translate2d(-chosen * shift_x, -chosen * shift_y)

    def _undo_scale(self, draw: _Draws, _shape: torch.Size) -> torch.Tensor:
        factor = draw.gate(self.scale * self.p, draw.lognormal(self.scale_std), 1)
        return _scale2d(1 / factor, 1 / factor)

    def _rotation_probability(self) -> torch.Tensor:
        """Probability of each of two rotations such that at least one happens in a share p."""
        return 1 - torch.sqrt((1 - self.rotate * self.p).clamp(0, 1))

    def _undo_first_rotation(self, draw: _Draws, _shape: torch.Size) -> torch.Tensor:
        span = math.pi * self.rotate_max
        return _rotate2d(draw.gate(self._rotation_probability(), draw.uniform(-span, span), 0))

    def _undo_aniso(self, draw: _Draws, _shape: torch.Size) -> torch.Tensor:
        factor = draw.gate(self.aniso * self.p, draw.lognormal(self.aniso_std), 1)
        return _scale2d(1 / factor, factor)

    def _undo_second_rotation(self, draw: _Draws, _shape: torch.Size) -> torch.Tensor:
        # Equal quantiles of both rotations would only add up, so the second one stays out of them.
        span = 0 if draw.deterministic else math.pi * self.rotate_max
        return _rotate2d(draw.gate(self._rotation_probability(), draw.uniform(-span, span), 0))

    def _undo_xfrac(self, draw: _Draws, shape: torch.Size) -> torch.Tensor:
        chosen = draw.chosen(self.xfrac * self.p)
        shift_x = draw.normal(self.xfrac_std) * shape[3]
        shift_y = draw.normal(self.xfrac_std) * shape[2]
        return _translate2d(-chosen * shift_x, -chosen * shift_y)

    def _transform_colors(self, draw: _Draws, x: torch.Tensor) -> torch.Tensor:
        """Run all colour transformations as one 4x4 matrix an image (paper, fig. 11)."""
        steps = (
            (self.brightness, self._brightness_matrix),
            (self.contrast, self._contrast_matrix),
            (self.lumaflip, self._lumaflip_matrix),
            (self.hue, self._hue_matrix),
            (self.saturation, self._saturation_matrix),
        )
        factors = [matrix(draw) for strength, matrix in steps if strength > 0]
        # The first step stands rightmost: it sees the colours first.
        return _recolor(x, functools.reduce(_compose, factors[::-1])) if factors else x

    def _brightness_matrix(self, draw: _Draws) -> torch.Tensor:
        return _translate3d(
            draw.gate(self.brightness * self.p, draw.normal(self.brightness_std), 0)
        )

    def _contrast_matrix(self, draw: _Draws) -> torch.Tensor:
        factor = draw.gate(self.contrast * self.p, draw.lognormal(self.contrast_std), 1)
        return _scale_luma_and_chroma(factor, factor)

    def _lumaflip_matrix(self, draw: _Draws) -> torch.Tensor:
        sign = draw.gate(self.lumaflip * self.p, 1 - 2 * draw.integer(2), 1)
        return _scale_luma_and_chroma(sign, 1)

    def _hue_matrix(self, draw: _Draws) -> torch.Tensor:
        span = math.pi * self.hue_max
        return _rotate_about_luma(draw.gate(self.hue * self.p, draw.uniform(-span, span), 0))

    def _saturation_matrix(self, draw: _Draws) -> torch.Tensor:
        factor = draw.gate(self.saturation * self.p, draw.lognormal(self.saturation_std), 1)
        return _scale_luma_and_chroma(1, factor)

    def _filter_bands(self, draw: _Draws, x: torch.Tensor) -> torch.Tensor:
        """Give each frequency band a random gain (paper, appendix B, image-space filtering)."""
        if self.imgfilter <= 0:
            return x
        gains = _keep_expected_power([self._band_gain(draw, b) for b in self.imgfilter_bands])
        # Not a matrix product: on a GPU that might be allowed to round to TF32.
        return _filter_separably(x, (gains[:, :, None] * self.Hz_fbank.to(x.dtype)).sum(dim=1))

    def _band_gain(self, draw: _Draws, strength: float) -> torch.Tensor:
        # Quantiles apply whatever has a strength, so a band without one needs a spread of zero.
        gain = draw.lognormal(self.imgfilter_std if strength > 0 else 0)
        return draw.gate(self.imgfilter * strength * self.p, gain, 1)

    def _add_noise(self, draw: _Draws, x: torch.Tensor) -> torch.Tensor:
        """Add white noise of a random level (paper, appendix B, additional corruptions)."""
        if self.noise <= 0:
            return x
        level = draw.gate(self.noise * self.p, draw.half_normal(self.noise_std), 0)
        return x + draw.normal(1, x.shape[1:]) * level[:, None, None, None]

    def _cut_out(self, draw: _Draws, x: torch.Tensor) -> torch.Tensor:
        """Zero a rectangle with its centre in the image (paper, appendix B, same section)."""
        if self.cutout <= 0:
            return x
        size = draw.chosen(self.cutout * self.p) * self.cutout_size
        inside_x = _within_interval(x.shape[3], draw.uniform(0, 1), size)
        inside_y = _within_interval(x.shape[2], draw.uniform(0, 1), size)
        return x.masked_fill((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0)


class _Draws:
    """The random numbers of one forward pass, or their quantiles; one number an image, [N].

    Quantiles of normal draws are divided by sqrt(2): numbers that were recorded with the official
    implementation follow that convention.
    """

    def __init__(self, images: torch.Tensor, percentile: float | None) -> None:
        self.count = images.shape[0]
        self.options: dict[str, Any] = {"dtype": images.dtype, "device": images.device}
        self.percentile = percentile

    @property
    def deterministic(self) -> bool:
        """Whether quantiles stand for the draws."""
        return self.percentile is not None

    def chosen(self, probability: torch.Tensor) -> torch.Tensor:
        """Return 1 for the images to augment and 0 for the others; quantiles augment all."""
        if self.deterministic:
            return torch.ones([self.count], **self.options)
        return (torch.rand([self.count], **self.options) < probability).to(self.options["dtype"])

    def gate(self, probability: torch.Tensor, value: torch.Tensor, neutral: float) -> torch.Tensor:
        """Take `value` [N] for the images to augment and the number `neutral` for the others."""
        return torch.where(self.chosen(probability) > 0, value, torch.full_like(value, neutral))

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """Uniform in [low, high)."""
        if self.percentile is not None:
            return torch.full([self.count], low + (high - low) * self.percentile, **self.options)
        return low + (high - low) * torch.rand([self.count], **self.options)

    def integer(self, bound: int) -> torch.Tensor:
        """Uniform among 0 .. bound - 1, as floating point."""
        return torch.floor(self.uniform(0, bound))

    def normal(self, std: float, shape: Sequence[int] = ()) -> torch.Tensor:
        """Normal with mean 0; one array of `shape` an image."""
        if self.percentile is not None:
            value = std * _erfinv(2 * self.percentile - 1)
            return torch.full([self.count, *shape], value, **self.options)
        return std * torch.randn([self.count, *shape], **self.options)

    def half_normal(self, std: float) -> torch.Tensor:
        """Absolute value of a normal with mean 0."""
        if self.percentile is not None:
            value = std * _erfinv(self.percentile)
            return torch.full([self.count], value, **self.options)
        return self.normal(std).abs()

    def lognormal(self, std: float) -> torch.Tensor:
        """Two to the power of a normal with mean 0."""
        return torch.exp2(self.normal(std))


def _erfinv(value: float) -> float:
    return torch.erfinv(torch.tensor(value, dtype=torch.float64)).item()


def _check_batch(images: torch.Tensor, percentile: float | None) -> None:
    if images.ndim != 4 or not images.is_floating_point() or min(images.shape[2:]) < 2:
        raise ValueError(
            "augmentation needs floating-point images [N, C, H, W] of at least 2x2 pixels, "
            f"got {images.dtype} {list(images.shape)}"
        )
    if percentile is not None and not 0 < percentile < 1:
        raise ValueError(f"debug_percentile must lie between 0 and 1, got {percentile}")


# Filters of the constructor, as NumPy float64 arrays.


def _lowpass(wavelet: Sequence[float]) -> np.ndarray:
    """Scale a wavelet's low-pass filter to unit gain at zero frequency."""
    taps = np.asarray(wavelet, dtype=np.float64)
    return taps / taps.sum()


def _stretch(taps: np.ndarray, factor: int) -> np.ndarray:
    """Put factor - 1 zeros between taps: H(z) becomes H(z^factor)."""
    stretched = np.zeros((len(taps) - 1) * factor + 1)
    stretched[::factor] = taps
    return stretched


def _filter_bank(wavelet: Sequence[float], bands: int) -> np.ndarray:
    """Build zero-phase band-pass filters, octave by octave; they sum to a unit impulse.

    The undecimated wavelet transform (paper, appendix B): the half-band filter H(z) H(1/z) / 2
    splits off the upper half of the spectrum, then, stretched, of what is left, and so on.

    Returns:
        [bands, taps] float64, the lowest band first; taps is odd.
    """
    low = _lowpass(wavelet)
    low = np.convolve(low, low[::-1])
    high = -low
    high[len(low) // 2] += 1
    rows, remainder = [], np.ones(1)
    for level in range(bands - 1):
        rows.append(np.convolve(remainder, _stretch(high, 2**level)))
        remainder = np.convolve(remainder, _stretch(low, 2**level))
    rows.append(remainder)
    return np.stack([np.pad(row, (len(remainder) - len(row)) // 2) for row in rows[::-1]])


# Matrices in homogeneous coordinates, [N, 3, 3] for the plane and [N, 4, 4] for RGB. Entries are
# tensors [N]; plain numbers stand for constants.


def _matrix(rows: list[list[Any]]) -> torch.Tensor:
    entries = [entry for row in rows for entry in row]
    like = next(entry for entry in entries if isinstance(entry, torch.Tensor))
    options = {"shape": like.shape, "dtype": like.dtype, "device": like.device}
    # Cached constants: filling each anew would cost hundreds of kernel launches a batch.
    tensors = [e if isinstance(e, torch.Tensor) else misc.constant(e, **options) for e in entries]
    return torch.stack(tensors, dim=1).reshape(-1, len(rows), len(rows))


def _compose(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product, summed up in full precision whether or not TF32 is allowed on the GPU."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(dim=2)


def _translate2d(tx: torch.Tensor, ty: torch.Tensor) -> torch.Tensor:
    return _matrix([[1, 0, tx], [0, 1, ty], [0, 0, 1]])


def _scale2d(sx: torch.Tensor, sy: torch.Tensor | float) -> torch.Tensor:
    return _matrix([[sx, 0, 0], [0, sy, 0], [0, 0, 1]])


def _rotate2d(angle: torch.Tensor) -> torch.Tensor:
    c, s = torch.cos(angle), torch.sin(angle)
    return _matrix([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _translate3d(t: torch.Tensor) -> torch.Tensor:
    return _matrix([[1, 0, 0, t], [0, 1, 0, t], [0, 0, 1, t], [0, 0, 0, 1]])


def _circulant3d(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Linear map of RGB that treats the three channels alike."""
    return _matrix([[a, b, c, 0], [c, a, b, 0], [b, c, a, 0], [0, 0, 0, 1]])


def _scale_luma_and_chroma(luma: Any, chroma: Any) -> torch.Tensor:
    """Scale colours along the axis v = (1, 1, 1) / sqrt(3) and across it, vv' and I - vv'.

    Args:
        luma, chroma: Factors, a tensor [N] and a number or another tensor [N].
    """
    mixed = (luma - chroma) / 3
    return _circulant3d(chroma + mixed, mixed, mixed)


def _rotate_about_luma(angle: torch.Tensor) -> torch.Tensor:
    """Rotate colours about v = (1, 1, 1) / sqrt(3) by an angle in radians (Rodrigues' formula)."""
    c, s = torch.cos(angle), torch.sin(angle) / math.sqrt(3)
    mixed = (1 - c) / 3
    return _circulant3d(c + mixed, mixed - s, mixed + s)


# What is done with the matrices and filters.


def _reflect_pad(x: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """Extend [N, C, H, W] by mirroring at the border pixels, as often as the padding needs.

    Args:
        x: Images of at least 2x2 pixels.
        padding: Pixels to add: left, right, top, bottom.
    """
    height, width = x.shape[2:]
    # A mirror image reaches one pixel less far than the image. The extension is symmetric about
    # the end of each full mirror image too, so the rest can be mirrored there.
    reach = (width - 1, width - 1, height - 1, height - 1)
    while any(padding):
        step = list(map(min, padding, reach))
        x = torch.nn.functional.pad(x, step, mode="reflect")
        padding = list(map(operator.sub, padding, step))
    return x


def _margins(
    inverse: torch.Tensor, size: tuple[int, int], border: int, footprint: int
) -> list[int]:
    """Find how far outside the image the lookups of the whole batch read.

    This is the one place where the pipe waits for the GPU: shapes must be known on the host.

    Args:
        inverse: [N, 3, 3], output to input coordinates in pixels about the image centre.
        size: Width and height.
        border: Pixels of the output around the image that are looked up too.
        footprint: Pixels of the input that a lookup reads around its place.

    Returns:
        Whole pixels: left, right, top, bottom.
    """
    margins = []
    for axis, length in enumerate(size):
        # A box about the origin reaches as far to one side as to the other.
        spans = [inverse[:, axis, k].abs() * ((size[k] - 1) / 2 + border) for k in (0, 1)]
        outside = spans[0] + spans[1] + footprint - (length - 1) / 2
        limit = max(length - 1, _SMALLEST_MARGIN_LIMIT)
        for sign in (-1, 1):
            margin = (outside + sign * inverse[:, axis, 2]).max().ceil()
            margins.append(margin.clamp(0, limit))
    return [int(margin) for margin in torch.stack(margins).tolist()]


def _lookup_grid(
    inverse: torch.Tensor,
    offset: tuple[float, float],
    in_size: tuple[int, int],
    out_size: Sequence[int],
) -> torch.Tensor:
    """Write affine lookups between images upsampled by two as grid_sample wants them.

    The peak of the wavelet filter lies half a sample off the middle of its taps: sample u of an
    upsampled image lies at u / 2 + 1 / 4 pixels, both counted from the centre.

    Args:
        inverse: [N, 3, 3], output to input coordinates in pixels about the image centre.
        offset: The x and y to add to the input coordinates.
        in_size: Width and height of the upsampled input in samples.
        out_size: Width and height of the upsampled output in samples.

    Returns:
        [N, height, width, 2], x and y with -1 and 1 at the outer edges of the border samples.
    """
    x, y = (
        (torch.arange(n, dtype=inverse.dtype, device=inverse.device) - (n - 1) / 2) / 2 + 0.25
        for n in out_size
    )
    # By hand, because affine_grid multiplies matrices, on a GPU perhaps rounded to TF32.
    lookups = []
    for axis, length in enumerate(in_size):
        a, b, c = inverse[:, axis, :, None, None].unbind(dim=1)
        pixels = a * x[None, :] + b * y[:, None] + (c + offset[axis])
        lookups.append((pixels - 0.25) * (4 / length))
    return torch.stack(lookups, dim=-1)


def _warp(x: torch.Tensor, inverse: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Resample images under affine maps with little aliasing (paper, appendix B, fig. 11).

    Images are reflected at the border, upsampled by two with an orthogonal wavelet filter, looked
    up bilinearly and downsampled with the mirrored filter. Translations by whole pixels are exact,
    because an orthogonal filter and its mirror reconstruct perfectly; mirrored and
    turned images are off by about a tenth of a pixel, because the filter is not quite symmetric.

    Args:
        x: [N, C, H, W].
        inverse: [N, 3, 3], output to input coordinates in pixels about the image centre.
        taps: Low-pass filter [12], float32.
    """
    size = (x.shape[3], x.shape[2])
    border = len(taps) // 4
    left, right, top, bottom = _margins(inverse, size, border, footprint=border)
    x = upfirdn2d.upsample2d(_reflect_pad(x, (left, right, top, bottom)), taps, up=2)
    # Unequal margins move the centre to which input coordinates refer.
    offset = ((left - right) / 2, (top - bottom) / 2)
    out_size = [2 * (n + 2 * border) for n in size]
    grid = _lookup_grid(inverse, offset, (x.shape[3], x.shape[2]), out_size)
    x = grid_sample_gradfix.grid_sample(x, grid)
    # Cropping the border here keeps out what grid_sample takes for zero beyond it.
    return upfirdn2d.downsample2d(x, taps, down=2, padding=-2 * border, flip_filter=True)


def _recolor(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Apply [N, 4, 4] to the colours of x, [N, 3, H, W], or to the mean channel of grey images."""
    matrix = matrix[:, :3]
    if x.shape[1] == 1:
        # A grey image has three equal channels; the mean of the result is the new grey.
        matrix = matrix.mean(dim=1, keepdim=True)
        factor, shift = matrix[:, :, :3].sum(dim=2), matrix[:, :, 3]
        return x * factor[:, :, None, None] + shift[:, :, None, None]
    if x.shape[1] != 3:
        raise ValueError(f"colour augmentation needs 1 or 3 channels, got {x.shape[1]}")
    return (matrix[:, :, :3] @ x.flatten(2) + matrix[:, :, 3:]).reshape(x.shape)


def _keep_expected_power(gains: list[torch.Tensor]) -> torch.Tensor:
    """Normalise the gains of all bands, a list of [N], for natural images; returns [N, bands].

    The paper normalises after each band, when the other bands have gain 1 in that step; the
    product of these norms is the same for all bands.
    """
    power = [1 + share * (gains[i] ** 2 - 1) for i, share in enumerate(_BAND_POWER)]
    norm = functools.reduce(torch.mul, power).sqrt()
    return torch.stack(gains, dim=1) / norm[:, None]


def _filter_separably(x: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Filter rows and columns of x, [N, C, H, W], with symmetric taps [N, odd], reflecting."""
    count, channels, height, width = x.shape
    margin = taps.shape[1] // 2
    x = _reflect_pad(x, [margin] * 4).reshape(1, count * channels, height + 2 * margin, -1)
    # As one image whose channels are filtered apart, because each has its own filter.
    weight = taps.repeat_interleave(channels, dim=0)[:, None]
    x = conv2d_gradfix.conv2d(x, weight[:, :, None, :], groups=count * channels)
    x = conv2d_gradfix.conv2d(x, weight[:, :, :, None], groups=count * channels)
    return x.reshape(count, channels, height, width)


def _within_interval(length: int, centre: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Mark pixels, bool [N, length], whose middle is less than size / 2 from the centre.

    Size and centre, [N] each, are relative to the length.
    """
    middle = (torch.arange(length, dtype=centre.dtype, device=centre.device) + 0.5) / length
    return (middle - centre[:, None]).abs() < size[:, None] / 2
