"""Notice that a run has run away, and know its last good networks."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.misc import finite_weights
from training.monitor.verdict import Action, Verdict

# Images live in [-1, 1]: sane chains move them by less than 2 (rms), and the paper's literal noise
# alone by 4.5. Chains that run away pass any limit at once: 1e5 was seen four kimg after 0.2.
DISPLACEMENT_LIMIT = 20.0
# Mean scores of sane runs stayed below 10; with a clamped chain, scores are what runs away.
SCORE_LIMIT = 1e4
LOWER_STEP = 0.5  # times the learning rates, after a rollback

COOPERATIVE_ADVICE = (
    "try less noise (--coop-noise=0.01 --coop-noise-schedule=linear), a smaller --coop-step-size, "
    "a lower --lr, --coop-clamp=1 or a shorter --coop-kimg"
)
ADVERSARIAL_ADVICE = (
    "try a lower --lr, R1 (--gamma) or, in half precision, --precision=bf16 or fp32"
)


class DivergenceError(UserError):
    """Training has run away; the message says where, what was saved and what to try."""


class Watched(Protocol):
    """What the guard needs of `training.model.TrainingState`."""

    progress: Any  # with nimg and lr_factor

    def networks(self) -> dict[str, Any]:
        """Progress and networks, of `state_dict()`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        ...

    def load_networks(self, state: Mapping[str, Any]) -> None:
        """Restore what `networks()` returned."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        ...


class DivergenceGuard:
    """Remembers the last tick whose losses and weights were sane.

    Args:
        state: What goes back to that tick.
        trained: The networks whose weights are watched, by name.
        may_roll_back: All of `state` goes back to that tick, once, instead of an error; else only
            the networks are remembered.
    """

    def __init__(
        self, state: Watched, trained: Mapping[str, torch.nn.Module], may_roll_back: bool = False
    ) -> None:
        self._watched = state
        self._trained = trained
        self._may_roll_back = may_roll_back
        self._remember()

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, if training has moved on since."""
        return {} if self._nimg == self._watched.progress.nimg else self._good

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict()` returned, once what is watched has been restored."""
        self._remember()
        # A run that was not to roll back has remembered less: this one may roll back to here.
        if state.keys() >= self._good.keys():
            self._good = {name: state[name] for name in self._good}

    @property
    def _nimg(self) -> int:
        return self._good["progress"]["nimg"]

    def check(self, stage_name: str, stats: Mapping[str, Mapping[str, float]]) -> Verdict:
        """Look at the statistics of a tick; all processes call this together.

        Args:
            stage_name: For the message: cooperative or adversarial.
            stats: What `TrainingStats.collect()` returned for the tick.

        Returns:
            Stop, or roll back, where a loss or a weight is not finite, scores are beyond all
            bounds, or the Langevin chains leave the image range.
        """
        finite = finite_weights(self._trained)
        broken = distributed.any_rank(*(not sane for sane in finite.values()))
        names = [name for name, is_broken in zip(finite, broken, strict=True) if is_broken]
        symptoms = [*_symptoms(stats), *(f"weights of {name} not finite" for name in names)]
        if not symptoms:
            self._remember()
            return Verdict()
        progress, good = self._watched.progress, self._nimg / 1e3
        told = (
            f"the {stage_name} stage diverged before kimg {progress.nimg / 1e3:.1f} "
            f"({'; '.join(symptoms)})"
        )
        if self._may_roll_back and progress.lr_factor == 1:
            warning = (
                f"Warning: {told}; resuming from kimg {good:.1f} with {LOWER_STEP:g} times the "
                "learning rates."
            )
            return Verdict(Action.ROLL_BACK, (warning,))
        advice = COOPERATIVE_ADVICE if stage_name == "cooperative" else ADVERSARIAL_ADVICE
        saved = f"the networks of kimg {good:.1f} were saved"
        return Verdict(Action.STOP, error=DivergenceError(f"{told}; {saved}; {advice}"))

    def roll_back(self) -> None:
        """Put everything back to the last good tick, with a lower step."""
        self._watched.load_state_dict(copy.deepcopy(self._good))
        self._watched.progress.lr_factor = LOWER_STEP

    def restore_networks(self) -> None:
        """Put the networks back to the last good tick, to be saved."""
        self._watched.load_networks(self._good)

    def _remember(self) -> None:
        state = self._watched
        good = state.state_dict() if self._may_roll_back else state.networks()
        self._good = copy.deepcopy(good)


def _symptoms(stats: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What shows in the statistics of a tick that training has run away, in words.

    Gradients may overflow now and then in float16; the optimizer step drops what is not finite.
    """
    broken = [
        name
        for name, entry in stats.items()
        if name.startswith(("Loss/", "Coop/"))
        and "/grad_norm/" not in name
        and not math.isfinite(entry["mean"])
    ]
    if broken:
        yield f"{', '.join(sorted(broken))} not finite"
    displacement = stats.get("Coop/displacement", {"mean": 0.0})["mean"]
    if displacement > DISPLACEMENT_LIMIT:
        yield f"Langevin chains moved images by {displacement:.3g} (rms; images span 2)"
    for kind in ("real", "fake"):
        score = stats.get(f"Loss/scores/{kind}", {"mean": 0.0})["mean"]
        if abs(score) > SCORE_LIMIT:
            yield f"the mean score of {kind} images is {score:.3g}"
