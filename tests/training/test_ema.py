import pytest
import torch

from tests import tiny
from training.ema import ema_decay, update_ema


@pytest.mark.parametrize(
    ("batch", "nimg", "ema_kimg", "rampup", "expected"),
    [
        (1000, 10**6, 10, None, 0.5**0.1),
        (10000, 10**6, 10, None, 0.5),
        (500, 10000, 10, 0.05, 0.5),  # the ramp-up bounds the half-life at 500 images
        (1000, 10**7, 10, 0.05, 0.5**0.1),  # and no longer late in the run
        (32, 0, 10, 0.05, 0.0),
        (32, 10**6, 0, None, 0.0),
    ],
)
def test_decay(batch, nimg, ema_kimg, rampup, expected):
    assert ema_decay(batch, nimg, ema_kimg, rampup) == pytest.approx(expected)


def test_half_life():
    average = 1.0
    for iteration in range(100):
        average *= ema_decay(100, iteration * 100, 10, None)
    assert average == pytest.approx(0.5)


def test_parameters_move_and_buffers_are_copied():
    (average, _), (model, _) = tiny.networks(seed=0), tiny.networks(seed=1)
    model.mapping.w_avg.normal_()
    before = {name: p.detach().clone() for name, p in average.named_parameters()}
    update_ema(average, model, decay=0.75)
    current = dict(model.named_parameters())
    for name, p in average.named_parameters():
        torch.testing.assert_close(p, 0.75 * before[name] + 0.25 * current[name])
        assert p.grad_fn is None
    assert any((before[name] != p).any() for name, p in average.named_parameters())
    for kept, new in zip(average.buffers(), model.buffers(), strict=True):
        assert torch.equal(kept, new)
    assert average.mapping.w_avg.abs().sum() > 0


def test_no_memory_makes_an_exact_copy():
    (average, _), (model, _) = tiny.networks(seed=0), tiny.networks(seed=1)
    update_ema(average, model, decay=0.0)
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        assert torch.equal(kept, new)
