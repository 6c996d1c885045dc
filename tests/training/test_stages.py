import math

import pytest
import torch

from training.stages import GRADIENT_LIMIT, Phase, Stage, run_phase


def ignore(name, value):
    pass


def batches(count=2):
    return [dict(real_img=torch.rand(4, 1, 8, 8)) for _ in range(count)]


class SumOfParameters:
    """Loss whose gradient is `gain` times `slope` for every parameter but the last."""

    def __init__(self, net, slope):
        self.net, self.slope = net, slope

    def accumulate_gradients(self, *, phase, gain, **batch):
        *reached, _ = self.net.parameters()
        sum(p.sum() for p in reached).mul(self.slope * gain).backward()


def one_phase(net, slope, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    phase = Phase("Dmain", {"D": net}, (optimizer,), **options)
    loss = SumOfParameters(net, slope)
    return Stage("adversarial", "Loss", loss, (phase,), {"D": 1.0}), phase


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("interval", [1, 4])
def test_gain_is_the_interval_whatever_the_number_of_micro_batches(rounds, interval):
    net = torch.nn.Linear(2, 2, bias=True)
    weight, bias = net.weight.clone(), net.bias.clone()
    stage, phase = one_phase(net, slope=0.5, interval=interval)
    run_phase(stage, phase, batches(rounds), ignore)
    torch.testing.assert_close(net.weight, weight - 0.5 * interval)
    assert torch.equal(net.bias, bias) and (net.bias.grad == 0).all()
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("slope", "step"), [(float("nan"), 0.0), (float("inf"), GRADIENT_LIMIT), (1e9, 1e9)]
)
def test_non_finite_gradients_are_replaced(slope, step):
    net = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(net.weight)
    seen = {}
    stage, phase = one_phase(net, slope)
    run_phase(stage, phase, batches(1), seen.__setitem__)
    assert net.weight.item() == pytest.approx(-step)
    assert list(seen) == ["Loss/grad_norm/Dmain", "Loss/nonfinite/Dmain"]
    assert seen["Loss/nonfinite/Dmain"].item() == (not math.isfinite(slope))


def test_a_gain_of_its_own_goes_before_the_interval():
    net = torch.nn.Linear(2, 2)
    weight = net.weight.clone()
    stage, phase = one_phase(net, slope=0.5, interval=4, gain=2.0)
    run_phase(stage, phase, batches(3), ignore)
    torch.testing.assert_close(net.weight, weight - 0.5 * 2)


def test_a_phase_is_due_at_its_offset():
    _, phase = one_phase(torch.nn.Linear(1, 1), 1.0, interval=4, offset=3)
    assert [i for i in range(9) if phase.is_due(i)] == [3, 7]
    _, always = one_phase(torch.nn.Linear(1, 1), 1.0)
    assert all(always.is_due(i) for i in range(9))


class Product:
    """Loss whose gradient of either network is the weight of the other."""

    def accumulate_gradients(self, *, phase, gain, F, G, **batch):
        (F.weight * G.weight).sum().mul(gain).backward()


def test_a_phase_steps_several_networks_with_their_optimizers():
    F, G = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    f, g = F.weight.item(), G.weight.item()
    rates = {"F": 0.5, "G": 0.25}
    optimizers = tuple(
        torch.optim.SGD(net.parameters(), lr=rates[name]) for name, net in (("F", F), ("G", G))
    )
    phase = Phase("Gmain", {"F": F, "G": G}, optimizers)
    stage = Stage("adversarial", "Loss", Product(), (phase,), rates)
    run_phase(stage, phase, [dict(F=F, G=G)], ignore)
    assert F.weight.item() == pytest.approx(f - 0.5 * g)
    assert G.weight.item() == pytest.approx(g - 0.25 * f)
    assert stage.nets == {"F": F, "G": G}
