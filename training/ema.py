"""Exponential moving average of the generator."""

import torch


def ema_decay(batch: int, nimg: int, ema_kimg: float, rampup: float | None) -> float:
    """Weight of the old average in one step: half-life `ema_kimg`, shorter early in the run.

    Args:
        batch: Images per iteration.
        nimg: Images seen before this iteration.
        ema_kimg: Half-life in thousands of images; 0 keeps no memory.
        rampup: The half-life is at most `rampup * nimg`; None: no such bound.
    """
    half_life = ema_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, nimg * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the parameters of `average` towards those of `model`; copy its buffers."""
    # What torch.optim uses; one kernel for many tensors has no public name.
    lerp_, copy_ = torch._foreach_lerp_, torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
    lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    copy_(list(average.buffers()), list(model.buffers()))
