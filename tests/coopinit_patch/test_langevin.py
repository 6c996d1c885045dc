import math

import pytest
import torch

from coopinit_patch import langevin, noise_levels


def gaussian(mean, variance):
    """D(x) of N(mean, variance): its gradient is (mean - x) / variance."""
    return lambda x: -(x - mean).square().flatten(1).sum(dim=1) / (2 * variance)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("step_size", [0.1, 0.5])
def test_literal_noise_samples_the_stationary_gaussian(step_size):
    """x <- (1-a) x + a m + sqrt(2 eta) e, a = eta / v: mean m, variance v / (1 - a / 2)."""
    mean, variance = 0.7, 1.5
    stds = noise_levels(200, step_size, "literal", "constant")
    assert stds[0] == pytest.approx(math.sqrt(2 * step_size))
    x = langevin(
        gaussian(mean, variance),
        torch.full([20000, 1], -3.0),
        step_size=step_size,
        noise_stds=stds,
        generator=generator(),
    )
    expected = variance / (1 - step_size / variance / 2)
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(expected / 20000))
    # The standard error of a variance estimate is about variance * sqrt(2 / N).
    assert x.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / 20000))


def test_noiseless_chain_is_gradient_ascent():
    x = langevin(gaussian(1.0, 2.0), torch.zeros(1, 1), step_size=1.0, noise_stds=[0.0] * 3)
    assert x.item() == pytest.approx(1 - 0.5**3)


def test_seeded_generator_reproduces_and_leaves_global_state_alone():
    start, stds = torch.zeros(4, 1, 2, 2), [0.1] * 5
    state = torch.get_rng_state()
    runs = [
        langevin(gaussian(0, 1), start, step_size=0.1, noise_stds=stds, generator=generator(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state())


def test_each_sample_moves_by_its_own_gradient():
    x = torch.tensor([[0.0], [4.0]])
    together = langevin(gaussian(1, 1), x, step_size=0.3, noise_stds=[0.0])
    alone = langevin(gaussian(1, 1), x[1:], step_size=0.3, noise_stds=[0.0])
    assert torch.equal(together[1:], alone)


def test_clamp_holds_after_every_step():
    seen = []

    def steep(x):
        seen.append(x.detach().abs().max().item())
        return 100 * x.flatten(1).sum(dim=1)

    x = langevin(steep, torch.zeros(2, 3), step_size=1.0, noise_stds=[0.0] * 3, clamp=0.5)
    assert torch.equal(x, torch.full([2, 3], 0.5))
    assert seen == [0.0, 0.5, 0.5]


def test_step_clip_bounds_the_rms_of_each_sample():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    steep = langevin(gaussian(0, 0.1), x, step_size=1.0, noise_stds=[0.0], step_clip=1.0)
    # The second sample would move by ten times (3, 4), of rms 35; the first does not move.
    expected = x[1] - x[1] / (x[1].square().mean().sqrt())
    torch.testing.assert_close(steep, torch.stack([x[0], expected]))
    gentle = langevin(gaussian(0, 100.0), x, step_size=1.0, noise_stds=[0.0], step_clip=1.0)
    torch.testing.assert_close(gentle, x * 0.99)


def test_a_gradient_that_is_not_finite_moves_nothing():
    def slope(x):  # 1 for the second sample, not finite for the first
        return (x * torch.tensor([[float("inf")], [1.0]])).flatten(1).sum(dim=1)

    x = langevin(slope, torch.tensor([[0.5], [0.5]]), step_size=1.0, noise_stds=[0.0])
    assert x.tolist() == [[0.5], [1.5]]


def test_start_is_kept_and_no_weight_gets_a_gradient():
    D = torch.nn.Linear(3, 1)
    start = torch.randn(2, 3, generator=generator(), requires_grad=True)
    kept = start.detach().clone()
    x = langevin(D, start, step_size=1.0, noise_stds=[0.1] * 2)
    assert not x.requires_grad
    assert torch.equal(start.detach(), kept) and start.grad is None
    assert all(p.grad is None for p in D.parameters())


def test_works_where_gradients_are_disabled():
    with torch.no_grad():
        x = langevin(gaussian(1, 1), torch.zeros(1, 1), step_size=0.5, noise_stds=[0.0])
    assert x.item() == pytest.approx(0.5)


def test_noise_schedules():
    assert noise_levels(4, 1.0, 0.2, "constant") == [0.2] * 4
    assert noise_levels(4, 1.0, 0.2, "linear") == pytest.approx([0.2, 0.15, 0.1, 0.05])
    for schedule in ("constant", "linear"):
        assert noise_levels(2, 2.0, "literal", schedule) == [2.0, 2.0]
    with pytest.raises(ValueError, match="linear, constant"):
        noise_levels(2, 1.0, 0.1, "cosine")
