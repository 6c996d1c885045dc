"""Bilinear sampling of images whose gradient can be differentiated again.

`torch.nn.functional.grid_sample` has no second derivative in the older PyTorch releases that this
project supports. Sampling is linear in the image, so its gradient is the adjoint linear map, and
the gradient of that is sampling again: two functions, each the other's derivative.
"""

from typing import Any

import torch
import torch.nn.functional as nnf


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample images bilinearly; what lies outside them is zero.

    Differentiates any number of times with respect to `input`. A grid that requires a gradient
    is handed to PyTorch, with the derivatives that the installed release has.

    Args:
        input: Images [N, C, H, W] of floating-point dtype.
        grid: Positions [N, H', W', 2] as (x, y) with the dtype of `input`; -1 and 1 are the outer
            edges of the border pixels (`align_corners=False`).

    Returns:
        Images [N, C, H', W'].
    """
    if grid.requires_grad:
        return _sample(input, grid)
    return _Sample.apply(input, grid)


def _sample(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return nnf.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return _sample(images, grid)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad_output,), (grid,) = grad_outputs, ctx.saved_tensors
        return _Splat.apply(grad_output, grid, ctx.shape), None


class _Splat(torch.autograd.Function):
    """The adjoint of sampling: adds each sample to the pixels it came from."""

    @staticmethod
    def forward(
        ctx: Any, samples: torch.Tensor, grid: torch.Tensor, shape: torch.Size
    ) -> torch.Tensor:
        ctx.save_for_backward(grid)
        # Mode 0 is bilinear, padding 0 is zeros, then align_corners. Of the images only the shape
        # matters, as the gradient with respect to the grid is masked out.
        images = samples.new_zeros(shape)
        grad_images, _ = torch.ops.aten.grid_sampler_2d_backward(
            samples, images, grid, 0, 0, False, [True, False]
        )
        return grad_images

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad_output,), (grid,) = grad_outputs, ctx.saved_tensors
        return _Sample.apply(grad_output, grid), None, None
