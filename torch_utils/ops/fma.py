"""Fused multiply-add."""

import torch


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Compute `a * b + c` in one pass over memory; differentiates any number of times.

    Args:
        a: tensor of any shape and floating-point dtype.
        b: tensor that broadcasts with `a`.
        c: tensor that broadcasts with `a * b`.

    Returns:
        Tensor of the common broadcast shape.
    """
    return torch.addcmul(c, a, b)
