"""Upsample, filter with a finite impulse response, downsample: resampling of images.

Every function of this module takes images of shape [N, C, H, W] and a filter that `setup_filter`
made: float32 of shape [fh, fw], or [taps] for a separable filter that is applied along both axes,
or None for the identity. Pairs are given as [x, y], padding as [x0, x1, y0, y1].
"""

from collections.abc import Sequence

import numpy as np
import torch

from torch_utils.ops import backend, conv2d_gradfix

# From this many taps on, two one-dimensional passes beat one two-dimensional pass.
_MIN_SEPARABLE_TAPS = 8
# PyTorch filters smaller float32 images as fast or faster on the CPU (benchmarks/ops.py).
_MIN_NATIVE_PIXELS = 256


def setup_filter(
    f: Sequence | np.ndarray | torch.Tensor | float | None,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """Turn filter coefficients into the tensor that the operators of this module take.

    Args:
        f: [taps] for a separable filter, [fh, fw] for any other, a scalar, or None (identity).
        device: Where the result lives.
        normalize: Divide by the sum, so that a constant image keeps its value.
        flip_filter: Reverse the order of the coefficients.
        gain: Factor on the image that the filter will be applied to.
        separable: Keep one-dimensional coefficients as they are, rather than expand them to their
            outer product; None does so from 8 taps on.

    Returns:
        Float32 tensor of shape [taps] (separable) or [fh, fw].

    Raises:
        ValueError: `f` is empty, has more than two dimensions, cannot be separable, or sums to 0
            and cannot be normalised.
    """
    # On the CPU whatever the default device: the checks need values.
    taps = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device="cpu")
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"filter must have shape [taps] or [fh, fw], not {list(taps.shape)}")
    if taps.ndim == 0:
        taps = taps[None]
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= _MIN_SEPARABLE_TAPS
    if separable and taps.ndim != 1:
        raise ValueError("a separable filter is given by its one-dimensional coefficients")
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        total = taps.sum()
        if total == 0:
            raise ValueError("filter sums to 0 and cannot be normalised; pass normalize=False")
        taps = taps / total
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    # A separable filter is applied twice, with the square root of the gain each time.
    taps = taps * gain ** (taps.ndim / 2)
    return taps.to(device)


def upfirdn2d(  # noqa: PLR0913 - the operator's established signature
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Upsample by zero insertion, pad, filter and decimate each channel; differentiates twice.

    Along each axis: insert `up - 1` zeros after every sample, pad with zeros (a negative padding
    crops), convolve with `f` where it overlaps fully, multiply by `gain`, keep every `down`-th
    sample from the first.

    Args:
        x: Images [N, C, H, W] of any floating-point dtype; the filter is applied in that dtype,
            natively in float32 for the half precisions.
        f: Filter on the device of `x`; see the module description.
        up: Upsampling factor, an integer or [x, y].
        down: Downsampling factor, an integer or [x, y].
        padding: In pixels of the upsampled image: an integer, [x, y] or [x0, x1, y0, y1].
        flip_filter: Correlate rather than convolve.
        gain: Factor on the result.
        impl: 'cuda' is the native operator of the device of `x` where it can be had (see
            `backend`); 'ref' is plain PyTorch.

    Returns:
        Images [N, C, H', W'] with the dtype and memory format of `x`.

    Raises:
        ValueError: An argument is malformed, or the filter is larger than the padded image.
    """
    if x.ndim != 4:
        raise ValueError(f"images must have shape [N, C, H, W], not {list(x.shape)}")
    up, down, padding = parse_scaling(up), parse_scaling(down), parse_padding(padding)
    _check_size(x, f, up, padding)
    native = backend.uses_native(x, impl, faster_on_cpu=not _is_small(x, down))
    # The native operator has no gradient of the filter, which is a constant everywhere here.
    native = native and not (f is not None and f.requires_grad)
    filter_channels = _filter_channels_native if native else _filter_channels_ref
    f = torch.ones([1, 1], device=x.device) if f is None else f
    if f.ndim == 2:
        return filter_channels(x, f, up, down, padding, flip_filter, gain)
    x0, x1, y0, y1 = padding
    f_x, f_y = f[None, :], f[:, None]
    x = filter_channels(x, f_x, (up[0], 1), (down[0], 1), (x0, x1, 0, 0), flip_filter, gain)
    return filter_channels(x, f_y, (1, up[1]), (1, down[1]), (0, 0, y0, y1), flip_filter, 1)


def filter2d(  # noqa: PLR0913 - as upfirdn2d
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Filter images, keeping their size plus `padding`. Arguments as `upfirdn2d`."""
    padding = resample_padding(f, padding=padding)
    return upfirdn2d(x, f, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(  # noqa: PLR0913 - as upfirdn2d
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Enlarge images to `up` times their size plus `padding`, keeping their brightness.

    Arguments as `upfirdn2d`; the padding is in pixels of the result.
    """
    up = parse_scaling(up)
    padding = resample_padding(f, up=up, padding=padding)
    gain = gain * up[0] * up[1]
    return upfirdn2d(x, f, up=up, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl)


def downsample2d(  # noqa: PLR0913 - as upfirdn2d
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> torch.Tensor:
    """Shrink images, extended by `padding`, by the factor `down`.

    Arguments as `upfirdn2d`; the padding is in pixels of the input.
    """
    down = parse_scaling(down)
    padding = resample_padding(f, down=down, padding=padding)
    return upfirdn2d(
        x, f, down=down, padding=padding, flip_filter=flip_filter, gain=gain, impl=impl
    )


def parse_scaling(scaling: int | Sequence[int]) -> tuple[int, int]:
    """Factors (x, y) from an integer or a pair of positive integers."""
    pair = tuple(scaling) if isinstance(scaling, Sequence) else (scaling, scaling)
    if len(pair) != 2 or any(int(s) != s or s < 1 for s in pair):
        raise ValueError(f"scaling must be a positive integer or [x, y], not {scaling!r}")
    return int(pair[0]), int(pair[1])


def parse_padding(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Padding (x0, x1, y0, y1) from an integer, [x, y] or [x0, x1, y0, y1]."""
    pad = tuple(padding) if isinstance(padding, Sequence) else (padding, padding)
    if len(pad) == 2:
        pad = (pad[0], pad[0], pad[1], pad[1])
    if len(pad) != 4 or any(int(p) != p for p in pad):
        raise ValueError(f"padding must be an integer, [x, y] or [x0, x1, y0, y1], not {padding!r}")
    x0, x1, y0, y1 = (int(p) for p in pad)
    return x0, x1, y0, y1


def filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    """Width and height of a filter.

    Raises:
        ValueError: `f` is not what `setup_filter` returns.
    """
    if f is None:
        return 1, 1
    if f.ndim not in (1, 2) or f.dtype != torch.float32 or f.numel() == 0:
        raise ValueError(
            "filter must be a float32 tensor of shape [taps] or [fh, fw] as made by "
            f"setup_filter, not {f.dtype} of shape {list(f.shape)}"
        )
    return f.shape[-1], f.shape[0]


def resample_padding(
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
) -> tuple[int, int, int, int]:
    """Padding for `upfirdn2d` that centres the filter, so that resampling shifts nothing.

    Zero insertion leaves `up - 1` zeros behind the last sample, and decimation keeps the first
    sample of every `down`; both move the centre of the filter by half of that.
    """
    up, down, padding = parse_scaling(up), parse_scaling(down), parse_padding(padding)
    result = []
    for axis, size in enumerate(filter_size(f)):
        total = size - 1 - (down[axis] - 1)
        before = (size + up[axis] - down[axis]) // 2
        result += [padding[2 * axis] + before, padding[2 * axis + 1] + total - before]
    x0, x1, y0, y1 = result
    return x0, x1, y0, y1


def _check_size(
    x: torch.Tensor, f: torch.Tensor | None, up: Sequence[int], padding: Sequence[int]
) -> None:
    fw, fh = filter_size(f)
    width = x.shape[3] * up[0] + padding[0] + padding[1]
    height = x.shape[2] * up[1] + padding[2] + padding[3]
    if width < fw or height < fh:
        raise ValueError(
            f"the upsampled and padded image is {width}x{height} pixels, "
            f"smaller than the filter of {fw}x{fh}"
        )


def _is_small(x: torch.Tensor, down: Sequence[int]) -> bool:
    """Whether the images are small, or become so."""
    small = x.shape[2] * x.shape[3] < _MIN_NATIVE_PIXELS * down[0] * down[1]
    return small and x.dtype == torch.float32


def _filter_channels_native(
    x: torch.Tensor,
    f: torch.Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    return torch.ops.coopinit.upfirdn2d(x, f, up, down, padding, flip_filter, gain)


def _filter_channels_ref(
    x: torch.Tensor,
    f: torch.Tensor,
    up: tuple[int, int],
    down: tuple[int, int],
    padding: tuple[int, int, int, int],
    flip_filter: bool,
    gain: float,
) -> torch.Tensor:
    f = f if flip_filter else f.flip([0, 1])  # the convolutions below correlate
    f = (f * gain).to(x.dtype)
    channels = x.shape[1]
    w = f.expand(channels, 1, *f.shape)
    if up == (1, 1):
        return conv2d_gradfix.conv2d_padded(x, w, padding, (down[1], down[0]), groups=channels)
    x = conv2d_gradfix.conv2d_upsampled(x, w, up, padding, groups=channels)
    if down == (1, 1):
        return x
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return x[:, :, :: down[1], :: down[0]].contiguous(memory_format=memory_format)
