"""Several processes have the gradients of one that sees all their micro-batches."""

from datetime import timedelta

import pytest
import torch

from tests import tiny
from torch_utils import distributed
from torch_utils.spawn import run_processes
from training.stages import run_phase

CPU = torch.device("cpu")
MINUTE = timedelta(minutes=1)


@pytest.fixture
def data(tmp_path):
    return tiny.write_data(tmp_path / "tiny.zip", count=40)


# Whatever draws random numbers: Langevin and synthesis noise, mixing, augmentation, zCR.
Z_DIM, SCALE = 16, 1 / 32
EVERYTHING = dict(
    batch=8,
    gamma=1.0,
    pl_weight=2.0,
    style_mixing=0.9,
    coop_kimg=1,
    coop_steps=2,
    zcr=True,
    aug="fixed",
    p=0.5,
    cond=True,
    z_dim=Z_DIM,
    g_scale=SCALE,
    d_scale=SCALE,
)
PHASES = {
    True: {
        "cooperative Gmain",
        "cooperative Dmain",
        "adversarial Gmain",
        "adversarial Greg",
        "adversarial Dmain",
        "adversarial Dreg",
    },
    False: {"cooperative Gmain", "cooperative Dmain", "adversarial Gboth", "adversarial Dboth"},
}


def micro_batches():
    generator = torch.Generator().manual_seed(5)
    labels = torch.eye(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return [
        dict(
            real_img=draw(4, 1, 8, 8).clamp(-1, 1),
            real_c=labels[[0, 1, 2, place]],
            gen_z=draw(4, Z_DIM),
            gen_c=labels[[place, 2, 0, 1]],
        )
        for place in range(2)
    ]


def draw_by_content(loss):
    """Let random numbers be a function of the micro-batch, in whichever process it is seen."""
    accumulate = loss.accumulate_gradients

    def seeded(**batch):
        torch.manual_seed(int(batch["gen_z"].abs().sum() * 1000))
        accumulate(**batch)

    loss.accumulate_gradients = seeded


def gradients(data, lazy):
    """Gradients {"stage phase": {parameter: tensor}}; of two processes each sees one micro-batch.

    Path lengths are held against a mean that stays where it is: a process alone moves it, by 1 %
    of what is new, after each micro-batch; several do so after each step.
    """
    torch.manual_seed(0)
    model = tiny.model(data, lazy=lazy, **EVERYTHING)
    for name, parameter in model.parts.G.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.1)
    batches = micro_batches()
    if distributed.get_world_size() > 1:
        batches = [batches[distributed.get_rank()]]
    found = {}
    for stage in model.stages:
        draw_by_content(stage.loss)
        if stage.name == "adversarial":
            stage.loss.pl_decay = 0.0
            stage.loss.pl_mean.fill_(0.5)
        for phase in stage.phases:
            [optimizer], [net] = phase.optimizers, phase.nets.values()
            optimizer.step = lambda: None
            run_phase(stage, phase, batches, lambda name, value: None)
            found[f"{stage.name} {phase.name}"] = {
                name: parameter.grad.clone() for name, parameter in net.named_parameters()
            }
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "not lazy"])
def test_two_processes_give_the_gradients_of_one(data, lazy):
    with torch.random.fork_rng():
        alone = gradients(data, lazy)
    together = run_processes(gradients, 2, data, lazy, timeout=MINUTE)
    assert alone.keys() == together.keys() == PHASES[lazy]
    for phase, expected in alone.items():
        reached = [name for name, gradient in expected.items() if gradient.any()]
        assert len(reached) > len(expected) / 2, phase
        for name, gradient in expected.items():
            difference = (together[phase][name] - gradient).norm() / gradient.norm().clamp(
                min=1e-30
            )
            assert difference <= 1e-5, (phase, name)
