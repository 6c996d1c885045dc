"""Signs that a run is going wrong while its numbers are still finite, each with advice.

They are looked for at the end of every tick, in statistics that a run collects anyway. A new one
is a function and an entry of `SYMPTOMS`, and its name in `SYMPTOMS` of
`training/settings/common.py`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch

from dnnlib.errors import UserError
from torch_utils.image_values import normalize
from training.monitor.verdict import Action, Verdict

# Runs of 8 to 32 kimg on digits, with each loss, one on 64 images, stayed below 0.97. A
# D whose G stands still (--lr-g=1e-5) passed 0.99 within 8 kimg, a cooperative stage whose G was
# lost (energy L2 0.1, constant noise 0.03) at kimg 52, when nothing else had shown it.
SATURATION = 0.99
# The same runs stayed above 0.55.
LOWEST_DIVERSITY = 0.1
# Augmentations leak into generated images as p comes near one (Karras et al. 2020a, section 2.2).
HIGHEST_P = 0.8
NON_FINITE_STEPS = 0.01  # float16 overflows now and then

Stats = Mapping[str, Mapping[str, float]]  # what `TrainingStats.collect()` returns


class SymptomError(UserError):
    """A symptom of --stop-on was seen; the message says which, and what to try."""

    exit_status = 3


class Symptom(NamedTuple):
    """`seen`: from the statistics of a tick to what is wrong, a text or None.

    It is also told whether the probability of augmentations is adaptive in this stage. `meaning`
    says in words what it looks for.
    """

    seen: Callable[[Stats, bool], str | None]
    meaning: str
    advice: str


def _saturated(stats: Stats, adaptive: bool) -> str | None:
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


def _no_diversity(stats: Stats, adaptive: bool) -> str | None:
    diversity = stats["Progress/diversity"]["mean"]
    if diversity >= LOWEST_DIVERSITY:
        return None
    return f"G has collapsed: its images differ {diversity:.2g} times as much as real ones"


def _ada_ceiling(stats: Stats, adaptive: bool) -> str | None:
    p = stats["Progress/augment"]["mean"]
    if not adaptive or p < HIGHEST_P:
        return None
    return f"ADA's probability has risen to {p:.2f}"


def _non_finite(stats: Stats, adaptive: bool) -> str | None:
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
        stop_on: Names of symptoms.
    """

    def __init__(self, stop_on: Collection[str] = ()) -> None:
        self._stop_on = stop_on
        self._warned: set[str] = set()
        self.warnings: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """What has been warned of."""
        return {"warned": sorted(self._warned), "warnings": self.warnings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        self._warned, self.warnings = set(state["warned"]), list(state["warnings"])

    def check(self, stats: Stats, adaptive: bool = False) -> Verdict:
        """Look at the statistics of a tick.

        Args:
            stats: What `TrainingStats.collect()` returned.
            adaptive: The probability of augmentations follows D's overfitting in this stage.
        """
        new: list[str] = []
        for name, symptom in SYMPTOMS.items():
            text = symptom.seen(stats, adaptive)
            if text is None:
                continue
            if name in self._stop_on:
                error = SymptomError(f"{text} (--stop-on={name}). {symptom.advice}.")
                return Verdict(Action.STOP, tuple(new), error)
            if name not in self._warned:
                self._warned.add(name)
                new.append(f"Warning ({name}): {text}. {symptom.advice}.")
                self.warnings.append(new[-1])
        return Verdict(Action.WARN, tuple(new)) if new else Verdict()


def relative_diversity(fakes: torch.Tensor, reals: np.ndarray | torch.Tensor) -> torch.Tensor:
    """How much generated images differ from each other, compared with real ones; 0: not at all.

    Args:
        fakes: Images [N, C, H, W] in [-1, 1].
        reals: uint8 images [N, C, H, W].

    Returns:
        Ratio of the standard deviations over the batch, each averaged over pixels; a scalar.
    """
    reals = normalize(torch.as_tensor(reals, device=fakes.device))
    return fakes.std(dim=0).mean() / reals.std(dim=0).mean().clamp(min=1e-8)
