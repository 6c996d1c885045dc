"""Kernel Inception distance (KID): Binkowski et al. 2018, Demystifying MMD GANs."""

from typing import TYPE_CHECKING

import numpy as np

from metrics import MetricError
from metrics.registry import ComputeSettings, Values, register

if TYPE_CHECKING:
    from metrics.features import Collected

SUBSETS = 100
SUBSET_SIZE = 1000
_SEED = 0  # of the subsets; the metric's own, so that a measurement repeats


@register(
    "kid{n}_full",
    detector="inception",
    statistic="rows",
    num_real=1_000_000,
    full=True,
    better={"": "lower"},
)
@register("kid{n}", detector="inception", statistic="rows", num_real=50_000, better={"": "lower"})
def kid(real: "Collected", generated: "Collected", settings: ComputeSettings) -> Values:
    """Mean of the kernel distance over 100 random subsets of 1000."""
    reals, fakes = real.require_rows(), generated.require_rows()
    size = min(len(reals), len(fakes), SUBSET_SIZE)
    if size < 2:
        raise MetricError("the kernel distance needs at least two images on either side")
    rng = np.random.RandomState(_SEED)
    total = 0.0
    for _ in settings.progress(range(SUBSETS), "kernel distance"):
        x = fakes[rng.choice(len(fakes), size, replace=False)]
        y = reals[rng.choice(len(reals), size, replace=False)]
        total += squared_mmd(x, y)
    return {"": total / SUBSETS}


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy of x and y, both [m, D], with kernel (x.y / D + 1)^3.

    A point is not paired with itself within a set (Binkowski et al. 2018, section 4): for
    independent sets the estimate is unbiased and can be negative.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    m = len(x)
    within = sum(_off_diagonal_sum(_kernel(z, z)) for z in (x, y))
    return float(within / (m * (m - 1)) - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal_sum(kernel: np.ndarray) -> float:
    return kernel.sum() - np.trace(kernel)
