"""Fused multiply-add."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Compute `a * b + c` in one pass over memory; differentiates any number of times.

    Args:
        a: Tensor of any shape and floating-point dtype.
        b: Tensor that broadcasts with `a`.
        c: Tensor that broadcasts with `a * b`.

    Returns:
        Tensor of the common broadcast shape.
    """
    return torch.addcmul(c, a, b)
