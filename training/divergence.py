"""Stop a run that has run away, and keep its last good networks."""

import copy
import math

# Images live in [-1, 1]: sane chains move them by less than 2 (rms), and the paper's literal noise
# alone by 4.5. Chains that run away pass any limit at once: 1e5 was seen four kimg after 0.2.
DISPLACEMENT_LIMIT = 20.0
# Mean scores of sane runs stayed below 10; with a clamped chain, scores are what runs away.
SCORE_LIMIT = 1e4

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
    """Remembers the networks of the last tick whose losses were sane.

    Args:
        state: The `TrainingState` to watch.
    """

    def __init__(self, state):
        self._remember(state)

    def check(self, state, stage_name, stats, save_networks):
        """Look at the statistics of a tick.

        Args:
            state: The `TrainingState`; put back to the last good tick before an error.
            stage_name: For the message: cooperative or adversarial.
            stats: What `TrainingStats.collect()` returned for the tick.
            save_networks: Called without arguments to write the restored networks.

        Raises:
            DivergenceError: A loss is not finite, scores are beyond all bounds, or the Langevin
                chains leave the image range.
        """
        symptoms = list(_symptoms(stats))
        if not symptoms:
            self._remember(state)
            return
        failed_at = state.nimg
        self._restore(state)
        save_networks()
        advice = COOPERATIVE_ADVICE if stage_name == "cooperative" else ADVERSARIAL_ADVICE
        raise DivergenceError(
            f"the {stage_name} stage diverged before kimg {failed_at / 1e3:.1f} "
            f"({'; '.join(symptoms)}); the networks of kimg {state.nimg / 1e3:.1f} were saved; "
            f"{advice}"
        )

    def _remember(self, state):
        self._nimg = state.nimg
        self._weights = {
            name: copy.deepcopy(net.state_dict()) for name, net in state.nets().items()
        }

    def _restore(self, state):
        state.nimg = self._nimg
        for name, net in state.nets().items():
            net.load_state_dict(self._weights[name])


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
