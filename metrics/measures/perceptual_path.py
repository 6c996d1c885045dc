"""Perceptual path length (PPL): Karras et al. 2019, section 4.1; 2020, appendix for ppl2_wend.

How paths are walked is in `metrics/generated.py`; this is what is made of the distances.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from metrics.registry import ComputeSettings, Values, register

if TYPE_CHECKING:
    from metrics.features import Collected

_QUANTILES = (0.01, 0.99)  # what lies outside is left out


@dataclass(frozen=True)
class PathSampling:
    """One way to walk."""

    space: str
    """z (great circles between latents) or w (straight lines)."""
    ends: bool
    """Measure at one end of the path instead of anywhere on it."""
    crop: bool
    """Look at the part where FFHQ has the face."""
    epsilon: float = 1e-4
    """Length of a step; the whole path has length 1."""


def ppl(real: None, generated: "Collected", settings: ComputeSettings) -> Values:
    """Mean of the distances along the paths, without the extremes."""
    return {"": trimmed_mean(generated.require_rows()[:, 0])}


for _name, _sampling in {
    "ppl2_wend": PathSampling(space="w", ends=True, crop=False),
    "ppl_zfull": PathSampling(space="z", ends=False, crop=True),
    "ppl_wfull": PathSampling(space="w", ends=False, crop=True),
    "ppl_zend": PathSampling(space="z", ends=True, crop=True),
    "ppl_wend": PathSampling(space="w", ends=True, crop=True),
}.items():
    register(
        _name + "{n}",
        detector="vgg16",
        output="lpips",
        statistic="rows",
        num_real=0,
        count_in_name=False,
        path=_sampling,  # short paths alone make no good generator
    )(ppl)


def trimmed_mean(values: np.ndarray) -> float:
    """Mean of the values [N] from the 1st to the 99th percentile, both included."""
    low = np.quantile(values, _QUANTILES[0], method="lower")
    high = np.quantile(values, _QUANTILES[1], method="higher")
    return float(values[(values >= low) & (values <= high)].mean())
