"""Signs that a run is going wrong while its numbers are still finite, each with advice.

They are looked for at the end of every tick, in statistics that a run collects anyway. A new one
is a function and an entry of `SYMPTOMS`, and its name in `SYMPTOMS` of
`training/settings/validation.py`.
"""

import logging
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch

from torch_utils.image_values import normalize

# Runs of 8 to 32 kimg on digits, with each loss, one on 64 images, stayed below 0.97. A
# D whose G stands still (--lr-g=1e-5) passed 0.99 within 8 kimg, a cooperative stage whose G was
# lost (energy L2 0.1, constant noise 0.03) at kimg 52, when nothing else had shown it.
SATURATION = 0.99
# The same runs stayed above 0.55.
LOWEST_DIVERSITY = 0.1
# Augmentations leak into generated images as p comes near one (Karras et al. 2020a, section 2.2).
HIGHEST_P = 0.8
NON_FINITE_STEPS = 0.01  # float16 overflows now and then

logger = logging.getLogger(__name__)


class SymptomError(RuntimeError):
    """A symptom of --stop-on was seen; the message says which, and what to try."""


class Symptom(NamedTuple):
    """`seen`: from the statistics of a tick and the config to what is wrong, a text or None.

    `meaning` says in words what `seen` looks for.
    """

    seen: Callable
    meaning: str
    advice: str


def _saturated(stats, config):
    """Share of pairs, a real and a generated image, that D puts in order; normal scores assumed.

    A score's level and scale mean nothing in some losses and in the cooperative stage, its order
    does in all of them.
    """
    real, fake = (stats.get(f"Loss/scores/{kind}") for kind in ("real", "fake"))
    if real is None or fake is None:
        return None
    spread = math.hypot(real["std"], fake["std"])
    share = NormalDist().cdf((real["mean"] - fake["mean"]) / max(spread, 1e-8))
    if share < SATURATION:
        return None
    return f"D is saturated: it ranks {share:.1%} of the pairs of a real and a generated image"


def _no_diversity(stats, config):
    diversity = stats["Progress/diversity"]["mean"]
    if diversity >= LOWEST_DIVERSITY:
        return None
    return f"G has collapsed: its images differ {diversity:.2g} times as much as real ones"


def _ada_ceiling(stats, config):
    p = stats["Progress/augment"]["mean"]
    if config.aug != "ada" or p < HIGHEST_P:
        return None
    return f"ADA's probability has risen to {p:.2f}"


def _non_finite(stats, config):
    shares = {
        name.rpartition("/")[2]: entry["mean"]
        for name, entry in stats.items()
        if "/nonfinite/" in name and entry["mean"] > NON_FINITE_STEPS
    }
    if not shares:
        return None
    told = ", ".join(f"{share:.0%} of {phase}" for phase, share in shares.items())
    return f"gradients were not finite in {told} steps, which were taken with what was finite"


SYMPTOMS = {
    "d-saturated": Symptom(
        _saturated,
        f"D ranks at least {SATURATION:.0%} of the pairs of a real and a generated image",
        "G learns little from such a D. With few images use --aug=ada; else try a larger --gamma, "
        "a lower --lr-d or a smaller --d-scale; in the cooperative stage, end it sooner",
    ),
    "no-diversity": Symptom(
        _no_diversity,
        f"generated images differ from each other less than {LOWEST_DIVERSITY:g} times as much as "
        "real ones (mean over pixels of the standard deviation over 64 images)",
        "It will hardly recover: start again from an earlier snapshot (--resume) or anew, with "
        "--coop-kimg, a larger --gamma or a lower --lr-g",
    ),
    "ada-ceiling": Symptom(
        _ada_ceiling,
        f"--aug=ada has raised the probability of augmentations to {HIGHEST_P:g}",
        "Augmentations may show in generated images, and D overfits all the same: add images, "
        "--mirror=1 where it suits them, or start from a trained network (--resume, --freezed)",
    ),
    "non-finite": Symptom(
        _non_finite,
        f"gradients were not finite in more than {NON_FINITE_STEPS:.0%} of the steps of a network",
        "In half precision, try --precision=bf16 or fp32; else a lower --lr, or R1 (--gamma)",
    ),
}


class Diagnostics:
    """Warns once of each symptom, and ends the run at those that it is to stop on.

    `warnings` are the texts so far.

    Args:
        config: The `TrainingConfig`.
        quiet: Another process warns.
    """

    def __init__(self, config, quiet=False):
        self._config = config
        self._quiet = quiet
        self._warned = set()
        self.warnings = []

    def state_dict(self):
        """What has been warned of."""
        return {"warned": sorted(self._warned), "warnings": self.warnings}

    def load_state_dict(self, state):
        """Go on from `state_dict()`."""
        self._warned, self.warnings = set(state["warned"]), list(state["warnings"])

    def check(self, stats, save_networks):
        """Look at the statistics of a tick.

        Args:
            stats: What `TrainingStats.collect()` returned.
            save_networks: Called without arguments before an error.

        Raises:
            SymptomError: A symptom shows that the run is to stop on.
        """
        for name, symptom in SYMPTOMS.items():
            text = symptom.seen(stats, self._config)
            if text is None:
                continue
            if name in self._config.stop_on:
                save_networks()
                raise SymptomError(f"{text} (--stop-on={name}). {symptom.advice}.")
            if name not in self._warned:
                self._warned.add(name)
                self.warnings.append(f"Warning ({name}): {text}. {symptom.advice}.")
                logger.log(logging.DEBUG if self._quiet else logging.WARNING, self.warnings[-1])


def relative_diversity(fakes, reals):
    """How much generated images differ from each other, compared with real ones; 0: not at all.

    Args:
        fakes: Images [N, C, H, W] in [-1, 1].
        reals: uint8 images [N, C, H, W].

    Returns:
        Ratio of the standard deviations over the batch, each averaged over pixels; a scalar.
    """
    reals = normalize(torch.as_tensor(reals, device=fakes.device))
    return fakes.std(dim=0).mean() / reals.std(dim=0).mean().clamp(min=1e-8)
