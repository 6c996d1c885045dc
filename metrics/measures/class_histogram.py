"""Which classes a generator makes: covered classes and distance to the data's frequencies.

The number of covered modes and the divergence of the histogram are those of Stacked-MNIST studies
(Srivastava et al. 2017, VEEGAN), with the detector as the classifier.
"""

from typing import TYPE_CHECKING

import numpy as np

from metrics.registry import ComputeSettings, Values, register

if TYPE_CHECKING:
    from metrics.features import Collected


@register(
    "classes{n}_full",
    detector="inception",
    output="probabilities",
    statistic="rows",
    full=True,
    better={"kl": "lower"},
)
def classes(real: "Collected", generated: "Collected", settings: ComputeSettings) -> Values:
    """Classes with at least one image, KL(generated || real) of the histograms, the histogram."""
    histogram = class_histogram(generated.require_rows())
    return {
        "covered": int((histogram > 0).sum()),
        "kl": divergence(histogram, class_histogram(real.require_rows())),
        "histogram": histogram.tolist(),
    }


def class_histogram(probabilities: np.ndarray) -> np.ndarray:
    """Number of rows of [N, classes] in which each class is the most probable; int64 [classes]."""
    return np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])


def divergence(counts: np.ndarray, reference: np.ndarray) -> float:
    """KL divergence in nats of the frequencies of counts [classes] from those of reference.

    Half a count is added to every class of the reference, so that a class that it lacks costs
    much and not infinitely much.
    """
    p = counts / counts.sum()
    q = (reference + 0.5) / (reference + 0.5).sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
