"""Short-run Langevin dynamics as a free function (CoopInit, equation 4 and Algorithm 1, step D1).

The paper writes the noise of one step as N(0, sqrt(2 eta)), 1.41 for its eta = 1, which drowns
images in [-1, 1]. Published short-run chains (Nijkamp et al. 2019) use a full gradient step and
noise of about 1e-2 instead. The standard deviation is therefore an argument of its own here, and
"literal" asks for the paper's value.
"""

import math

import torch

SCHEDULES = ("linear", "constant")


def noise_levels(steps, step_size, noise, schedule):
    """Standard deviation of the noise of each step, a list of `steps` floats.

    Args:
        steps: Length T of the chain.
        step_size: eta; used only by literal noise.
        noise: Standard deviation of the first step, in image units; "literal" is sqrt(2 eta).
        schedule: "constant", or "linear": step t = 0 ... T-1 has the share 1 - t / T, so that the
            noise falls to zero at the end of the chain.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"noise schedule is one of {', '.join(SCHEDULES)}, not {schedule!r}")
    first = math.sqrt(2 * step_size) if noise == "literal" else float(noise)
    if schedule == "constant":
        return [first] * steps
    return [first * (1 - t / steps) for t in range(steps)]


def langevin(negative_energy, x, *, step_size, noise_stds, clamp=None, generator=None):
    """Revise samples by x <- x + eta * grad D(x) + s_t * N(0, 1), once for each entry of s.

    The gradient is that of the sum of D over the batch, so each sample moves by its own gradient,
    whatever the batch size. No gradient reaches the weights of D or the producer of `x`.

    Args:
        negative_energy: D, a function from samples [N, ...] to one value a sample [N] or [N, 1];
            p(x) is proportional to exp D(x) (equation 1).
        x: Start of the chains [N, ...]; not modified.
        step_size: eta.
        noise_stds: Standard deviation s_t of each step (`noise_levels()`); its length is T.
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
        x = x.detach() + step_size * gradient
        if std > 0:
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            x = x + std * noise
        if clamp is not None:
            x = x.clamp(-clamp, clamp)
    return x
