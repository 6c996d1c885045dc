import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import coopinit_patch
from coopinit_patch import CoopInitLoss
from training.networks import Discriminator, Generator

STEPS, STEP_SIZE = 4, 0.5


@pytest.fixture
def nets():
    torch.manual_seed(0)
    G = Generator(8, 2, 8, 8, 1, synthesis_kwargs=dict(channel_base=64, use_noise=False))
    D = Discriminator(2, 8, 1, channel_base=64, epilogue_kwargs=dict(mbstd_group_size=2))
    return G.double(), D


class DoubleD(torch.nn.Module):
    """A smooth score in float64 for exact comparisons, with a count of its evaluations."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(66, 16), torch.nn.Softplus(), torch.nn.Linear(16, 1)
        ).double()
        self.calls = 0

    def forward(self, x, c):
        self.calls += 1
        return self.net(torch.cat([x.flatten(1), c.to(x.dtype)], dim=1))


class DoubleG(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(10, 64).double()
        self.calls = 0

    def forward(self, z, c):
        self.calls += 1
        return torch.tanh(self.net(torch.cat([z, c.to(z.dtype)], dim=1))).reshape(-1, 1, 8, 8)


@pytest.fixture
def small():
    torch.manual_seed(1)
    batch = dict(
        real_img=torch.rand(6, 1, 8, 8).double() * 2 - 1,
        real_c=torch.eye(2).repeat(3, 1),
        gen_z=torch.randn(6, 8).double(),
        gen_c=torch.eye(2).flip(0).repeat(3, 1),
    )
    return DoubleG(), DoubleD(), batch


def coop_loss(G, D, **kwargs):
    generator = torch.Generator().manual_seed(5)
    settings = dict(steps=STEPS, step_size=STEP_SIZE, noise=0.05, clamp=0.9) | kwargs
    return CoopInitLoss(G, D, generator=generator, **settings)


def revise(D, x, c, clamp):
    """Step D1 of Algorithm 1, spelled out; noise falls linearly from 0.05."""
    generator = torch.Generator().manual_seed(5)
    for t in range(STEPS):
        x = x.detach().requires_grad_()
        D(x, c).sum().backward()
        noise = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = x.detach() + STEP_SIZE * x.grad + 0.05 * (1 - t / STEPS) * noise
        x = x.clamp(-clamp, clamp)
    return x.detach()


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_gradients_equal_algorithm_1(small, l2):
    G, D, batch = small
    direct_G, direct_D = copy.deepcopy(G), copy.deepcopy(D)
    loss = coop_loss(G, D, energy_l2=l2)
    for phase in ("Gmain", "Dmain"):
        loss.accumulate_gradients(phase=phase, gain=3, **batch)

    generated = direct_G(batch["gen_z"], batch["gen_c"])
    revised = revise(direct_D, generated, batch["gen_c"], clamp=0.9)
    (3 * (revised - generated).square().sum() / 6).backward()
    direct_D.zero_grad()
    real_scores = direct_D(batch["real_img"], batch["real_c"])
    revised_scores = direct_D(revised, batch["gen_c"])
    energy = revised_scores.mean() - real_scores.mean()
    energy = energy + l2 * (real_scores.square().mean() + revised_scores.square().mean())
    (3 * energy).backward()

    for net, direct in ((G, direct_G), (D, direct_D)):
        for got, expected in zip(gradients(net), gradients(direct), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_one_generator_pass_and_steps_plus_two_scores(small):
    G, D, batch = small
    loss = coop_loss(G, D)
    for phase in ("Gmain", "Greg", "Dmain", "Dreg"):
        loss.accumulate_gradients(phase=phase, gain=1, **batch)
    assert G.calls == 1
    assert D.calls == STEPS + 2


def test_each_phase_touches_its_network_only(small):
    G, D, batch = small
    loss = coop_loss(G, D)
    loss.accumulate_gradients(phase="Gmain", gain=1, **batch)
    assert all(p.grad is None for p in D.parameters())
    taught = gradients(G)
    loss.accumulate_gradients(phase="Dmain", gain=1, **batch)
    assert all(torch.equal(a, b) for a, b in zip(taught, gradients(G), strict=True))
    # The energy's level is free: the last bias cancels between real and revised images.
    *weights, last_bias = D.parameters()
    assert all(p.grad.abs().sum() > 0 for p in weights)
    assert last_bias.grad.abs().item() < 1e-12


def test_micro_batches_accumulate_to_the_whole_batch(small):
    G, D, batch = small
    whole_G, whole_D = copy.deepcopy(G), copy.deepcopy(D)
    whole = coop_loss(whole_G, whole_D, noise=0)
    parts = coop_loss(G, D, noise=0)
    halves = [{k: v[i : i + 3] for k, v in batch.items()} for i in (0, 3)]
    for phase in ("Gmain", "Dmain"):
        whole.accumulate_gradients(phase=phase, gain=1, **batch)
        for half in halves:
            parts.accumulate_gradients(phase=phase, gain=0.5, **half)
    for net, expected in ((G, whole_G), (D, whole_D)):
        for a, b in zip(gradients(net), gradients(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_keywords_of_the_official_trainers(small):
    G, D, batch = small
    loss = coop_loss(G, D)
    loss.accumulate_gradients(phase="Gboth", sync=True, gain=1, **batch)
    loss.accumulate_gradients(phase="Dboth", cur_nimg=0, gain=1, **batch)
    assert all(p.grad is not None for net in (G, D) for p in net.parameters())


def test_reports_what_a_run_logs(small):
    G, D, batch = small
    seen = {}
    loss = coop_loss(G, D, report=lambda name, value: seen.setdefault(name, value))
    for phase in ("Gmain", "Dmain"):
        loss.accumulate_gradients(phase=phase, gain=1, **batch)
    assert {"Coop/displacement", "Coop/energy_gap", "Loss/scores/real", "Loss/G/loss"} <= set(seen)
    assert not any(value.requires_grad for value in seen.values())
    generated = G(batch["gen_z"], batch["gen_c"]).detach()
    moved = revise(D, generated, batch["gen_c"], 0.9) - generated
    torch.testing.assert_close(seen["Coop/displacement"].square().mean(), moved.square().mean())


def test_stylegan2_with_labels(nets):
    G, D = nets
    G = G.float()
    G.requires_grad_(True)
    batch = dict(
        real_img=torch.rand(4, 1, 8, 8),
        real_c=torch.eye(2).repeat(2, 1),
        gen_z=torch.randn(4, 8),
        gen_c=torch.eye(2).repeat(2, 1),
    )
    loss = CoopInitLoss(G, D, steps=2)
    for phase in ("Gmain", "Dmain"):
        loss.accumulate_gradients(phase=phase, gain=1, **batch)
    assert all(torch.isfinite(p.grad).all() for p in G.parameters() if p.grad is not None)
    assert all(torch.isfinite(p.grad).all() for p in D.parameters())


def test_depends_on_torch_alone(tmp_path):
    """The folder can be copied into another trainer: it imports nothing else of this project."""
    source = Path(coopinit_patch.__file__).parent
    (tmp_path / "coopinit_patch").symlink_to(source)
    code = (
        "import sys, coopinit_patch\n"
        "ours = {'training', 'torch_utils', 'dnnlib', 'metrics', 'legacy'}\n"
        "sys.exit(bool(ours & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0
