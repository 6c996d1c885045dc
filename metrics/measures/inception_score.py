"""Inception score: Salimans et al. 2016, Improved Techniques for Training GANs."""

from typing import TYPE_CHECKING

import numpy as np

from metrics import MetricError
from metrics.registry import ComputeSettings, Values, register

if TYPE_CHECKING:
    from metrics.features import Collected

SPLITS = 10


@register(
    "is{n}",
    detector="inception",
    output="probabilities",
    statistic="rows",
    num_real=0,
    better={"mean": "higher"},
)
def inception_score_metric(real: None, generated: "Collected", settings: ComputeSettings) -> Values:
    """Mean and standard deviation over ten splits, in order."""
    mean, std = inception_score(generated.require_rows())
    return {"mean": mean, "std": std}


def inception_score(probabilities: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))) of each split of the images.

    Args:
        probabilities: [N, classes], of any floating-point type.
        splits: How many.

    Returns:
        Mean and standard deviation over the splits.

    Raises:
        MetricError: There are fewer images than splits.
    """
    count = len(probabilities)
    if count < splits:
        raise MetricError(f"the Inception score needs at least {splits} images, not {count}")
    p = probabilities.astype(np.float64)
    bounds = [count * i // splits for i in range(splits + 1)]
    scores = [
        np.exp(_divergence_from_mean(p[start:stop]).mean())
        for start, stop in zip(bounds, bounds[1:], strict=False)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def _divergence_from_mean(p: np.ndarray) -> np.ndarray:
    """KL divergence of every row from the mean of all rows; 0 log 0 is 0."""
    mean = np.broadcast_to(p.mean(axis=0), p.shape)
    ratio = np.divide(p, mean, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(axis=1)
