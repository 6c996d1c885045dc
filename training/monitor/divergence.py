"""Stop a run that has run away, and keep its last good networks."""

import copy
import logging
import math

import torch

from torch_utils import distributed

# Images live in [-1, 1]: sane chains move them by less than 2 (rms), and the paper's literal noise
# alone by 4.5. Chains that run away pass any limit at once: 1e5 was seen four kimg after 0.2.
DISPLACEMENT_LIMIT = 20.0
# Mean scores of sane runs stayed below 10; with a clamped chain, scores are what runs away.
SCORE_LIMIT = 1e4
WATCHED = ("G", "D")
LOWER_STEP = 0.5  # times the learning rates, after going back

logger = logging.getLogger(__name__)

COOPERATIVE_ADVICE = (
    "try less noise (--coop-noise=0.01 --coop-noise-schedule=linear), a smaller --coop-step-size, "
    "a lower --lr, --coop-clamp=1 or a shorter --coop-kimg"
)
ADVERSARIAL_ADVICE = (
    "try a lower --lr, R1 (--gamma) or, in half precision, --precision=bf16 or fp32"
)


class DivergenceError(RuntimeError):
    """Training has run away; the message says where, what was saved and what to try."""


class DivergenceGuard:
    """Remembers the last tick whose losses and weights were sane.

    Args:
        state: The `TrainingState` to watch.
        parts: What goes back once, together, instead of an error: objects with state_dict() and
            load_state_dict(), `state` among them; empty: nothing does, and only networks are kept.
    """

    def __init__(self, state, parts=()):
        self._watched = state
        self._parts = parts
        self._remember()

    def state_dict(self):
        """What it remembers, if training has moved on since."""
        if self._nimg == self._watched.nimg:
            return {}
        return {"nimg": self._nimg, "weights": self._weights, "rest": self._rest}

    def load_state_dict(self, state):
        """Go on from `state_dict()`, once everything that is watched has been restored."""
        self._remember()
        if not state or (self._parts and not state["rest"]):
            return  # saved by a run that was not to go back: it may go back to here
        self._nimg, self._weights = state["nimg"], state["weights"]
        self._rest = state["rest"] if self._parts else []

    def check(self, stage_name, stats, save_networks):
        """Look at the statistics of a tick.

        Args:
            stage_name: For the message: cooperative or adversarial.
            stats: What `TrainingStats.collect()` returned for the tick.
            save_networks: Called without arguments to write the restored networks.

        Returns:
            Whether training was put back to the last good tick, with a lower step.

        Raises:
            DivergenceError: A loss or a weight is not finite, scores are beyond all bounds, or the
                Langevin chains leave the image range. The networks are those of the last good tick.
        """
        broken = distributed.any_rank(*_broken(self._watched))
        names = [name for name, is_broken in zip(WATCHED, broken, strict=True) if is_broken]
        symptoms = [*_symptoms(stats), *(f"weights of {name} not finite" for name in names)]
        if not symptoms:
            self._remember()
            return False
        state = self._watched
        told = (
            f"the {stage_name} stage diverged before kimg {state.nimg / 1e3:.1f} "
            f"({'; '.join(symptoms)})"
        )
        if self._rest and state.lr_factor == 1:
            self._go_back(state)
            logger.log(
                logging.WARNING if distributed.is_rank0() else logging.DEBUG,
                "Warning: %s; going on from kimg %.1f with %g times the learning rates.",
                told, state.nimg / 1e3, state.lr_factor,
            )  # fmt: skip
            return True
        state.nimg = self._nimg
        for name, net in state.nets().items():
            net.load_state_dict(self._weights[name])
        save_networks()
        advice = COOPERATIVE_ADVICE if stage_name == "cooperative" else ADVERSARIAL_ADVICE
        raise DivergenceError(
            f"{told}; the networks of kimg {state.nimg / 1e3:.1f} were saved; {advice}"
        )

    def _remember(self):
        self._nimg = self._watched.nimg
        self._weights = {
            name: copy.deepcopy(net.state_dict()) for name, net in self._watched.nets().items()
        }
        self._rest = copy.deepcopy([part.state_dict() for part in self._parts])

    def _go_back(self, state):
        for part, saved in zip(self._parts, self._rest, strict=True):
            part.load_state_dict(copy.deepcopy(saved))
        state.lr_factor = LOWER_STEP


def finite_networks(state):
    """Whether all weights of G and D are finite; waits for the GPU."""
    return not any(_broken(state))


@torch.no_grad()
def _broken(state):
    """Of each network that is watched whether one of its weights is not finite."""
    norms = [torch._foreach_norm(list(state.nets()[name].parameters())) for name in WATCHED]
    return [not torch.stack(of_one).sum().isfinite() for of_one in norms]


def _symptoms(stats):
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
