"""Convolution with built-in resampling."""

from collections.abc import Sequence

import torch

from torch_utils.ops import conv2d_gradfix
from torch_utils.ops.upfirdn2d import parse_padding, resample_padding, upfirdn2d


def conv2d_resample(  # noqa: PLR0913 - the operator's established signature
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> torch.Tensor:
    """Upsample and filter, convolve, filter and downsample; differentiates twice.

    Between zero insertion and decimation every step is shift-invariant, so the steps may change
    places; each case runs them in the order that multiplies the fewest pixels.

    Args:
        x: Images [N, C_in, H, W].
        w: Weights [C_out, C_in / groups, kh, kw] with the dtype of `x`.
        f: Resampling filter made by `upfirdn2d.setup_filter`; None for the identity.
        up: Integer upsampling factor.
        down: Integer downsampling factor.
        padding: Zeros around the upsampled image (negative crops): an integer, [x, y] or
            [x0, x1, y0, y1]. What `f` takes off the borders is made up for separately.
        groups: Number of groups that channels are convolved in.
        flip_weight: True correlates with `w`, as `torch.nn.functional.conv2d` does; False
            convolves.
        flip_filter: True correlates with `f`; False convolves.

    Returns:
        Images [N, C_out, H', W'], where H' = H * up / down if `padding` makes up for the kernel.

    Raises:
        ValueError: An argument is malformed, or weights and images do not fit together.
    """
    _check_arguments(x, w, up, down, groups)
    pad = parse_padding(padding)
    if up > 1:
        pad = resample_padding(f, up=up, padding=pad)
    if down > 1:
        pad = resample_padding(f, down=down, padding=pad)
    if not flip_weight:
        w = w.flip([2, 3])  # from here on, w is meant for correlation

    if w.shape[2:] == (1, 1) and (up > 1 or down > 1):
        return _pointwise_resample(x, w, f, up, down, pad, groups, flip_filter)
    if up > 1:
        x = conv2d_gradfix.conv2d_upsampled(x, w, (up, up), pad, groups)
        x = upfirdn2d(x, f, flip_filter=flip_filter, gain=up**2)
        return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x
    if down > 1:
        x = upfirdn2d(x, f, padding=pad, flip_filter=flip_filter)
        return conv2d_gradfix.conv2d(x, w, stride=down, groups=groups)
    return conv2d_gradfix.conv2d_padded(x, w, pad, groups=groups)


def _pointwise_resample(  # noqa: PLR0913 - as above
    x: torch.Tensor,
    w: torch.Tensor,
    f: torch.Tensor | None,
    up: int,
    down: int,
    padding: Sequence[int],
    groups: int,
    flip_filter: bool,
) -> torch.Tensor:
    # A 1x1 kernel acts on each pixel alone, so it goes where there are fewest of them.
    if up > down:
        x = conv2d_gradfix.conv2d(x, w, groups=groups)
    if up > 1:
        x = upfirdn2d(x, f, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
        padding = (0, 0, 0, 0)
    if down > 1:
        x = upfirdn2d(x, f, down=down, padding=padding, flip_filter=flip_filter)
    return x if up > down else conv2d_gradfix.conv2d(x, w, groups=groups)


def _check_arguments(x: torch.Tensor, w: torch.Tensor, up: int, down: int, groups: int) -> None:
    for name, factor in (("up", up), ("down", down), ("groups", groups)):
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"{name} must be a positive integer, not {factor!r}")
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(
            "images must have shape [N, C_in, H, W] and weights [C_out, C_in / groups, kh, kw], "
            f"not {list(x.shape)} and {list(w.shape)}"
        )
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups != 0:
        raise ValueError(
            f"weights of shape {list(w.shape)} do not fit {x.shape[1]} input channels "
            f"in {groups} groups"
        )
