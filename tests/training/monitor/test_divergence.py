import math

import pytest
import torch

from tests import tiny
from torch_utils import distributed
from torch_utils.misc import finite_weights
from training.model import TrainingState
from training.monitor.divergence import DivergenceError, DivergenceGuard
from training.monitor.verdict import Action, Verdict


@pytest.fixture
def state(tmp_path):
    data = tiny.write_data(tmp_path / "tiny.zip", count=4)
    return TrainingState(tiny.model(data, g_scale=1 / 512, d_scale=1 / 512))


def guarding(state, may_roll_back=False):
    return DivergenceGuard(state, state.model.stages.adversarial.nets, may_roll_back)


def stats(**means):
    return {name.replace("__", "/"): {"num": 1, "mean": m, "std": 0.0} for name, m in means.items()}


SANE = stats(Loss__G__loss=1.0, Coop__displacement=0.5, Timing__total_sec=math.nan)


def train(state, value, nimg):
    """Stand-in for a tick of training."""
    for net in state.model.nets.values():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.data.fill_(value)
    state.progress.nimg = nimg


def tensors(state):
    return [t for net in state.model.nets.values() for t in [*net.parameters(), *net.buffers()]]


def stopped(verdict):
    """The message that a run is to end with."""
    assert verdict.action is Action.STOP and isinstance(verdict.error, DivergenceError)
    return str(verdict.error)


def test_sane_ticks_pass(state):
    guard = guarding(state)
    train(state, 0.5, nimg=4000)
    assert guard.check("cooperative", SANE) == Verdict()
    assert guard.check("adversarial", stats(Loss__G__loss=1e6)) == Verdict()
    assert guard.check("adversarial", {}) == Verdict()
    assert state.progress.nimg == 4000 and all((t == 0.5).all() for t in tensors(state))


def test_the_last_good_networks_are_restored(state):
    guard = guarding(state)
    for value in (0.25, 0.5):
        train(state, value, nimg=int(value * 16000))
        guard.check("cooperative", SANE)
    train(state, math.nan, nimg=12000)
    message = stopped(guard.check("cooperative", stats(Loss__G__loss=math.nan)))
    assert "before kimg 12.0 " in message and "networks of kimg 8.0 were saved" in message
    guard.restore_networks()
    assert state.progress.nimg == 8000 and all((t == 0.5).all() for t in tensors(state))


def test_what_breaks_in_another_process_is_seen(state, monkeypatch):
    def any_rank(*broken):
        assert broken == (False, False)
        return [False, True]

    monkeypatch.setattr(distributed, "any_rank", any_rank)
    verdict = guarding(state).check("cooperative", SANE)
    assert "weights of D not finite" in stopped(verdict)


def test_divergence_before_the_first_tick_keeps_the_initial_networks(state):
    initial = [t.clone() for t in tensors(state)]
    guard = guarding(state)
    train(state, math.inf, nimg=32)
    verdict = guard.check("cooperative", stats(Loss__D__loss=math.inf))
    assert "networks of kimg 0.0" in stopped(verdict)
    guard.restore_networks()
    assert all(torch.equal(*pair) for pair in zip(tensors(state), initial, strict=True))


@pytest.mark.parametrize(
    ("bad", "symptom"),
    [
        (stats(Loss__D__loss=math.nan), "Loss/D/loss not finite"),
        (stats(Loss__scores__real=-math.inf), "Loss/scores/real not finite"),
        (stats(Coop__energy_gap=math.nan), "Coop/energy_gap not finite"),
        (stats(Coop__displacement=math.nan), "Coop/displacement not finite"),
        (stats(Coop__displacement=123.4), "moved images by 123 "),
    ],
)
def test_symptoms(state, bad, symptom):
    message = stopped(guarding(state).check("cooperative", SANE | bad))
    assert symptom in message and "\n" not in message


@pytest.mark.parametrize("stage", ["Loss", "Coop"])
def test_overflowing_gradients_are_no_divergence(state, stage):
    overflow = stats(**{f"{stage}__grad_norm__Dmain": math.inf})
    assert guarding(state).check("adversarial", SANE | overflow) == Verdict()


@pytest.mark.parametrize(
    ("stage", "advice"), [("cooperative", "--coop-clamp=1"), ("adversarial", "--gamma")]
)
def test_advice_fits_the_stage(state, stage, advice):
    message = stopped(guarding(state).check(stage, stats(Loss__x=math.nan)))
    assert message.startswith(f"the {stage} stage diverged") and advice in message


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_scores_beyond_all_bounds_are_a_symptom(state, kind):
    """A clamped chain cannot leave the image range; what runs away is the energy."""
    means = {f"Loss__scores__{kind}": -1e5, "Coop__displacement": 0.4}
    message = stopped(guarding(state).check("cooperative", stats(**means)))
    assert f"mean score of {kind} images is -1e+05" in message


def test_rolling_back_once(state):
    guard = guarding(state, may_roll_back=True)
    train(state, 0.5, nimg=8000)
    pl_mean = state.model.stages.adversarial.loss.pl_mean
    pl_mean.fill_(1.0)
    broken = SANE | stats(Loss__D__loss=math.nan)
    assert guard.check("adversarial", SANE) == Verdict()
    train(state, math.nan, nimg=12000)
    pl_mean.fill_(math.nan)
    action, [warning], error = guard.check("adversarial", broken)
    assert action is Action.ROLL_BACK and error is None
    assert (
        "diverged before kimg 12.0" in warning
        and "resuming from kimg 8.0 with 0.5 times" in warning
    )
    guard.roll_back()
    assert (state.progress.nimg, state.progress.lr_factor, pl_mean.item()) == (8000, 0.5, 1.0)
    assert all((t == 0.5).all() for t in tensors(state))
    train(state, math.nan, nimg=12000)
    assert "networks of kimg 8.0 were saved" in stopped(guard.check("adversarial", broken))


@pytest.mark.parametrize("name", ["G", "D"])
def test_weights_that_are_not_finite(state, name):
    """A step can break a network after the last loss of a tick was computed."""
    guard = guarding(state)
    nets = state.model.nets
    assert all(finite_weights(nets).values())
    with torch.no_grad():
        next(nets[name].parameters()).view(-1)[0] = math.inf
    assert [net for net, finite in finite_weights(nets).items() if not finite] == [name]
    assert f"weights of {name} not finite" in stopped(guard.check("adversarial", SANE))
    guard.restore_networks()
    assert all(finite_weights(nets).values())


def test_a_guard_remembers_across_processes(state):
    guard = guarding(state)
    train(state, 0.5, nimg=8000)
    guard.check("adversarial", SANE)
    assert guard.state_dict() == {}, "what it remembers is the state itself"
    train(state, 0.75, nimg=9000)
    saved = guard.state_dict()
    other = guarding(state)
    other.load_state_dict(saved)
    verdict = other.check("adversarial", stats(Loss__D__loss=math.nan))
    assert "networks of kimg 8.0 were saved" in stopped(verdict)
    other.restore_networks()
    assert all((t == 0.5).all() for t in tensors(state))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("now", [False, True])
def test_a_guard_of_a_run_whose_setting_has_changed(state, before, now):
    """A run that was not to roll back has saved too little to roll back to."""
    guard = guarding(state, may_roll_back=before)
    train(state, 0.5, nimg=8000)
    saved = guard.state_dict()
    other = guarding(state, may_roll_back=now)
    other.load_state_dict(saved)
    train(state, math.nan, nimg=12000)
    verdict = other.check("adversarial", SANE)
    kimg = 8.0 if now and not before else 0.0
    text = verdict.warnings[0] if now else stopped(verdict)
    assert f"kimg {kimg}" in text.partition("not finite")[2]
