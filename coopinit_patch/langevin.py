"""Short-run Langevin dynamics as a free function (CoopInit, equation 4 and Algorithm 1, step D1).

The paper writes the noise of one step as N(0, sqrt(2 eta)), 1.41 for its eta = 1, which drowns
images in [-1, 1]. Published short-run chains (Nijkamp et al. 2019) use a full gradient step and
noise of about 1e-2 instead. The standard deviation is therefore an argument of its own here, and
"literal" asks for the paper's value.
"""

import math
from collections.abc import Callable, Sequence

import torch

SCHEDULES = ("linear", "constant")


def noise_levels(steps: int, step_size: float, noise: float | str, schedule: str) -> list[float]:
    """Standard deviation of the noise of each step of the chain, `steps` numbers.

    Args:
        steps: Length T of the chain.
        step_size: eta; used only by literal noise.
        noise: Standard deviation of the first step, in image units; "literal" is sqrt(2 eta) at
            every step, whatever the schedule.
        schedule: "constant", or "linear": step t = 0 ... T-1 has the share 1 - t / T, so that the
            noise falls to zero at the end of the chain.

    Raises:
        ValueError: `schedule` or the word in `noise` is unknown.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"noise schedule is one of {', '.join(SCHEDULES)}, not {schedule!r}")
    if noise == "literal":
        return [math.sqrt(2 * step_size)] * steps
    if schedule == "constant":
        return [float(noise)] * steps
    return [float(noise) * (1 - t / steps) for t in range(steps)]


def _clip_rms(move: torch.Tensor, limit: float) -> torch.Tensor:
    """Shorten each sample's move to a root mean square of at most `limit` over its elements."""
    rms = move.flatten(1).square().mean(dim=1).sqrt()
    share = (limit / rms.clamp(min=1e-12)).clamp(max=1)
    return move * share.reshape(-1, *[1] * (move.ndim - 1))


def langevin(
    negative_energy: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    step_size: float,
    noise_stds: Sequence[float],
    step_clip: float | None = None,
    clamp: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Revise samples by x <- x + eta * grad D(x) + s_t * N(0, 1), once for each entry of s.

    The gradient is that of the sum of D over the batch, so that each sample moves by its own
    gradient, where D scores each on its own (a minibatch-std layer couples the samples of a group).
    No gradient reaches the weights of D or the producer of `x`. Gradients that are not finite, as
    half precision makes them now and then, move nothing.

    Args:
        negative_energy: D, a function from samples [N, ...] to one value a sample [N] or [N, 1];
            p(x) is proportional to exp D(x) (equation 1).
        x: Start of the chains [N, ...]; not modified.
        step_size: eta.
        noise_stds: Standard deviation s_t of each step (`noise_levels()`); its length is T.
        step_clip: Shorten each sample's gradient move to this root mean square; None: no bound.
        clamp: Keep samples in [-clamp, clamp] after every step; None: no bound.
        generator: torch.Generator of the noise; None: torch's default one.

    Returns:
        The revised samples, detached, of the shape and dtype of `x`.
    """
    x = x.detach()
    for std in noise_stds:
        x.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(negative_energy(x).sum(), x)
        move = step_size * torch.nan_to_num(gradient, nan=0, posinf=0, neginf=0)
        if step_clip is not None:
            move = _clip_rms(move, step_clip)
        x = x.detach() + move
        if std > 0:
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            x = x + std * noise
        if clamp is not None:
            x = x.clamp(-clamp, clamp)
    return x
