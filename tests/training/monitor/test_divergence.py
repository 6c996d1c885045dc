import math

import pytest
import torch

from tests import tiny
from torch_utils import distributed
from training.dataset import ImageFolderDataset
from training.monitor.divergence import DivergenceError, DivergenceGuard, finite_networks
from training.state import create_state


@pytest.fixture
def state(tmp_path):
    dataset = ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip", count=4))
    return create_state(tiny.config(g_scale=1 / 512, d_scale=1 / 512), dataset, torch.device("cpu"))


def stats(**means):
    return {name.replace("__", "/"): {"num": 1, "mean": m, "std": 0.0} for name, m in means.items()}


SANE = stats(Loss__G__loss=1.0, Coop__displacement=0.5, Timing__total_sec=math.nan)


def train(state, value, nimg):
    """Stand-in for a tick of training."""
    for net in state.nets().values():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.data.fill_(value)
    state.nimg = nimg


def tensors(state):
    return [t for net in state.nets().values() for t in [*net.parameters(), *net.buffers()]]


def never():
    raise AssertionError("nothing is to be saved")


def test_sane_ticks_pass(state):
    guard = DivergenceGuard(state)
    train(state, 0.5, nimg=4000)
    guard.check("cooperative", SANE, never)
    guard.check("adversarial", stats(Loss__G__loss=1e6), never)
    assert not guard.check("adversarial", {}, never)
    assert state.nimg == 4000 and all((t == 0.5).all() for t in tensors(state))


def test_the_last_good_networks_are_restored_and_saved(state):
    guard = DivergenceGuard(state)
    for value in (0.25, 0.5):
        train(state, value, nimg=int(value * 16000))
        guard.check("cooperative", SANE, never)
    train(state, math.nan, nimg=12000)
    saved = []
    with pytest.raises(DivergenceError, match="kimg 12.0 .*networks of kimg 8.0 were saved"):
        guard.check(
            "cooperative",
            stats(Loss__G__loss=math.nan),
            lambda: saved.append((state.nimg, all((t == 0.5).all() for t in tensors(state)))),
        )
    assert saved == [(8000, True)]


def test_one_process_warns(state, caplog, monkeypatch):
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    guard = DivergenceGuard(state, [state])
    train(state, math.nan, nimg=4000)
    assert guard.check("cooperative", SANE, never)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_what_breaks_in_another_process_is_seen(state, monkeypatch):
    def any_rank(*broken):
        assert broken == (False, False)
        return [False, True]

    monkeypatch.setattr(distributed, "any_rank", any_rank)
    guard = DivergenceGuard(state)
    with pytest.raises(DivergenceError, match="weights of D not finite"):
        guard.check("cooperative", SANE, lambda: None)


def test_divergence_before_the_first_tick_keeps_the_initial_networks(state):
    initial = [t.clone() for t in tensors(state)]
    guard = DivergenceGuard(state)
    train(state, math.inf, nimg=32)
    with pytest.raises(DivergenceError, match="networks of kimg 0.0"):
        guard.check("cooperative", stats(Loss__D__loss=math.inf), lambda: None)
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
    with pytest.raises(DivergenceError) as caught:
        DivergenceGuard(state).check("cooperative", SANE | bad, lambda: None)
    assert symptom in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ["Loss", "Coop"])
def test_overflowing_gradients_are_no_divergence(state, stage):
    overflow = stats(**{f"{stage}__grad_norm__Dmain": math.inf})
    DivergenceGuard(state).check("adversarial", SANE | overflow, never)


@pytest.mark.parametrize(
    ("stage", "advice"), [("cooperative", "--coop-clamp=1"), ("adversarial", "--gamma")]
)
def test_advice_fits_the_stage(state, stage, advice):
    with pytest.raises(DivergenceError, match=f"the {stage} stage diverged.*{advice}"):
        DivergenceGuard(state).check(stage, stats(Loss__x=math.nan), lambda: None)


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_scores_beyond_all_bounds_are_a_symptom(state, kind):
    """A clamped chain cannot leave the image range; what runs away is the energy."""
    guard = DivergenceGuard(state)
    means = {f"Loss__scores__{kind}": -1e5, "Coop__displacement": 0.4}
    with pytest.raises(DivergenceError, match=f"mean score of {kind} images is -1e\\+05"):
        guard.check("cooperative", stats(**means), lambda: None)


class Remembering:
    """A part of a run that has something to remember."""

    value = 0.0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_going_back_once(state, caplog):
    part = Remembering()
    guard = DivergenceGuard(state, parts=(state, part))
    train(state, 0.5, nimg=8000)
    part.value = 1.0
    assert not guard.check("adversarial", SANE, never)
    train(state, math.nan, nimg=12000)
    part.value = math.nan
    assert guard.check("adversarial", SANE | stats(Loss__D__loss=math.nan), never)
    assert (state.nimg, state.lr_factor, part.value) == (8000, 0.5, 1.0)
    assert all((t == 0.5).all() for t in tensors(state))
    assert "diverged before kimg 12.0" in caplog.text and "on from kimg 8.0 with 0.5" in caplog.text
    train(state, math.nan, nimg=12000)
    with pytest.raises(DivergenceError, match="networks of kimg 8.0 were saved"):
        guard.check("adversarial", SANE | stats(Loss__D__loss=math.nan), lambda: None)


@pytest.mark.parametrize("name", ["G", "D"])
def test_weights_that_are_not_finite(state, name):
    """A step can break a network after the last loss of a tick was computed."""
    guard = DivergenceGuard(state)
    assert finite_networks(state)
    with torch.no_grad():
        next(state.nets()[name].parameters()).view(-1)[0] = math.inf
    assert not finite_networks(state)
    with pytest.raises(DivergenceError, match=f"weights of {name} not finite"):
        guard.check("adversarial", SANE, lambda: None)
    assert finite_networks(state)


def test_a_guard_remembers_across_processes(state):
    guard = DivergenceGuard(state)
    train(state, 0.5, nimg=8000)
    guard.check("adversarial", SANE, never)
    assert guard.state_dict() == {}, "what it remembers is the state itself"
    train(state, 0.75, nimg=9000)
    saved = guard.state_dict()
    other = DivergenceGuard(state)
    other.load_state_dict(saved)
    with pytest.raises(DivergenceError, match="networks of kimg 8.0 were saved"):
        other.check("adversarial", stats(Loss__D__loss=math.nan), lambda: None)
    assert all((t == 0.5).all() for t in tensors(state))
