"""Convolutions that differentiate twice, with the padding that resampling needs.

`conv2d` and `conv_transpose2d` are the names that network sources in the official format import.
Early PyTorch lacked a fast second derivative of convolutions, hence the module's name; today they
are PyTorch's own functions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch.nn.functional import conv2d as conv2d
from torch.nn.functional import conv_transpose2d as conv_transpose2d


def conv2d_padded(
    x: torch.Tensor,
    w: torch.Tensor,
    padding: Sequence[int],
    stride: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """Correlate padded images with a kernel: `conv2d` with a padding of its own for each side.

    Args:
        x: Images [N, C_in, H, W].
        w: Weights [C_out, C_in / groups, kh, kw].
        padding: Zeros [x0, x1, y0, y1] around the images; negative numbers crop.
        stride: Step between results, an integer or [y, x].
        groups: Number of groups of channels.
    """
    x0, x1, y0, y1 = padding
    if x0 == x1 >= 0 and y0 == y1 >= 0:  # saves a copy of the images
        return conv2d(x, w, stride=stride, padding=[y0, x0], groups=groups)
    return conv2d(_pad(x, padding), w, stride=stride, groups=groups)


def conv2d_upsampled(
    x: torch.Tensor, w: torch.Tensor, up: Sequence[int], padding: Sequence[int], groups: int = 1
) -> torch.Tensor:
    """Correlate zero-inserted, padded images with a kernel, without multiplying the zeros.

    Args:
        x: Images [N, C_in, H, W].
        w: Weights [C_out, C_in / groups, kh, kw].
        up: Upsampling factors [x, y]; `up - 1` zeros follow every pixel.
        padding: Zeros [x0, x1, y0, y1] around the upsampled image; negative numbers crop.
        groups: Number of groups of channels.

    Returns:
        Images [N, C_out, H * up_y + y0 + y1 - kh + 1, W * up_x + x0 + x1 - kw + 1].
    """
    c_out, c_in, kh, kw = w.shape
    w = w.flip([2, 3])  # a transposed convolution convolves
    w = w.reshape(groups, c_out // groups, c_in, kh, kw).transpose(1, 2)
    w = w.reshape(groups * c_in, c_out // groups, kh, kw)
    # A transposed convolution pads each side with the kernel's k - 1 zeros, and its input ends
    # with the last pixel, without the up - 1 zeros that follow it.
    x0, x1, y0, y1 = padding
    x0, x1, y0, y1 = x0 - kw + 1, x1 - kw + up[0], y0 - kh + 1, y1 - kh + up[1]
    crop_x, crop_y = max(0, min(-x0, -x1)), max(0, min(-y0, -y1))
    x = conv_transpose2d(x, w, stride=[up[1], up[0]], padding=[crop_y, crop_x], groups=groups)
    return _pad(x, [x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y])


def _pad(x: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    # Growing comes first: a crop may take all of the image and some of the zeros opposite.
    for step in ([max(p, 0) for p in padding], [min(p, 0) for p in padding]):
        x = nnf.pad(x, step) if any(step) else x
    return x
