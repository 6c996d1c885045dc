import math

import numpy as np
import pytest
import torch

from tests.golden_cases import load_cases, relative_error
from training.augment import AugmentPipe
from training.loss import StyleGAN2Loss
from training.networks import Discriminator, Generator
from training.objectives import (
    ADVERSARIAL_LOSSES,
    ConsistencyWeights,
    gradient_penalty,
    latent_consistency,
    path_lengths,
    r1_penalty,
)


def no_report(name, value):
    assert torch.is_tensor(value) and not value.requires_grad


def load(net, arrays, prefix):
    state = {
        name.removeprefix(prefix): torch.from_numpy(np.array(value))
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    net.load_state_dict(state)
    return net.train()


@pytest.mark.parametrize("index", range(6))
def test_golden(index, monkeypatch):
    meta, arrays = load_cases("stylegan2_loss")[index]
    G = load(Generator(**meta["G_kwargs"]), arrays, "G/")
    D = load(Discriminator(**meta["D_kwargs"]), arrays, "D/")
    trained, other = (G, D) if meta["phase"].startswith("G") else (D, G)
    other.requires_grad_(False)
    loss = StyleGAN2Loss(
        G,
        D,
        r1_gamma=meta["r1_gamma"],
        style_mixing_prob=0,
        pl_weight=meta["pl_weight"],
        pl_decay=meta["pl_decay"],
        pl_batch_shrink=meta["pl_batch_shrink"],
        report=no_report,
    )
    if "pl_noise_raw" in arrays:
        noise = torch.from_numpy(arrays["pl_noise_raw"])
        monkeypatch.setattr(torch, "randn_like", lambda x: noise.reshape(x.shape))
    loss.accumulate_gradients(
        phase=meta["phase"],
        real_img=torch.from_numpy(arrays["real_img"]),
        real_c=torch.from_numpy(arrays["c"]),
        gen_z=torch.from_numpy(arrays["z"]),
        gen_c=torch.from_numpy(arrays["c"]),
        gain=meta["gain"],
    )
    assert relative_error(loss.pl_mean, arrays["pl_mean"]) <= 1e-4
    compared = 0
    for name, parameter in trained.named_parameters():
        if f"grad/{name}" in arrays:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert relative_error(gradient, arrays[f"grad/{name}"]) <= 1e-4, name
            compared += 1
    assert compared > 10


@pytest.fixture
def nets():
    torch.manual_seed(0)
    G = Generator(8, 0, 8, 8, 1, synthesis_kwargs=dict(channel_base=64, channel_max=8))
    D = Discriminator(0, 8, 1, channel_base=64, channel_max=8)
    batch = dict(
        real_img=torch.rand(4, 1, 8, 8) * 2 - 1,
        real_c=torch.zeros(4, 0),
        gen_z=torch.randn(4, 8),
        gen_c=torch.zeros(4, 0),
    )
    return G.train(), D.train(), batch


def gradients(net):
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def run(G, D, batch, *phases, **settings):
    for net in (G, D):
        net.zero_grad()
    loss = StyleGAN2Loss(G, D, report=no_report, **settings)
    for phase in phases:
        trained, other = (G, D) if phase.startswith("G") else (D, G)
        trained.requires_grad_(True), other.requires_grad_(False)
        torch.manual_seed(1)
        loss.accumulate_gradients(phase=phase, gain=1, **batch)
    return loss


@pytest.mark.parametrize("kind", ["G", "D"])
def test_both_is_main_plus_regulariser(nets, kind, monkeypatch):
    G, D, batch = nets
    for module in G.modules():
        if hasattr(module, "use_noise"):
            module.use_noise = False
    noise = torch.randn(2, 1, 8, 8)  # of the path lengths, on half the batch
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    settings = dict(r1_gamma=1.0, style_mixing_prob=0.0)
    net = G if kind == "G" else D
    run(G, D, batch, f"{kind}both", **settings)
    both = gradients(net)
    run(G, D, batch, f"{kind}main", f"{kind}reg", **settings)
    for a, b in zip(both, gradients(net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("phase", "setting"), [("Greg", "pl_weight"), ("Dreg", "r1_gamma")])
def test_a_weight_of_zero_turns_a_regulariser_off(nets, phase, setting):
    G, D, batch = nets
    run(G, D, batch, phase, **{setting: 0.0})
    assert not gradients(G) and not gradients(D)


def test_each_phase_trains_one_network(nets):
    G, D, batch = nets
    for phase in ("Gmain", "Greg"):
        run(G, D, batch, phase)
        assert gradients(G) and not gradients(D)
    for phase in ("Dmain", "Dreg"):
        run(G, D, batch, phase)
        assert gradients(D) and not gradients(G)


def test_style_mixing_replaces_later_styles(nets):
    G, D, batch = nets
    mixed = StyleGAN2Loss(G, D, style_mixing_prob=1.0, report=no_report)
    with torch.no_grad():
        _, ws = mixed._generate(batch["gen_z"], batch["gen_c"])
        plain = G.mapping(batch["gen_z"], batch["gen_c"])
    assert torch.equal(ws[:, 0], plain[:, 0])
    assert not torch.allclose(ws[:, -1], plain[:, -1])


def test_augmentation_is_seen_by_every_score(nets):
    G, D, batch = nets
    seen = []
    loss = StyleGAN2Loss(
        G, D, augment=lambda img: seen.append(len(img)) or img, r1_gamma=1.0, report=no_report
    )
    for phase in ("Gmain", "Dmain", "Dreg"):
        loss.accumulate_gradients(phase=phase, gain=1, **batch)
    assert seen == [4, 4, 4, 4]


def test_r1_of_a_linear_discriminator_is_its_squared_norm():
    weight = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    img = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty((img * weight).sum(dim=(1, 2, 3))[:, None], img)
    torch.testing.assert_close(penalty, weight.square().sum().expand(5))


def test_path_length_of_a_linear_generator():
    """For img = sum over styles of J w, the projection is noise . J, the same for each style."""
    torch.manual_seed(0)
    jacobian = torch.randn(3 * 4 * 4, 6, dtype=torch.float64)
    ws = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    lengths = path_lengths((ws.sum(dim=1) @ jacobian.t()).reshape(2, 3, 4, 4), ws, noise)
    expected = (noise.flatten(1) @ jacobian / 4).norm(dim=1)
    torch.testing.assert_close(lengths, expected)


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_adversarial_losses_pull_the_right_way(name):
    """D lowers fake scores and raises real ones, G raises fake ones, in float64 exactly."""
    scores = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)[:, None].requires_grad_()
    signs = {"D_real": -1, "D_fake": 1, "G_fake": -1}
    for part, sign in signs.items():
        function = getattr(ADVERSARIAL_LOSSES[name], part)
        assert torch.autograd.gradcheck(function, scores)
        (gradient,) = torch.autograd.grad(function(scores).sum(), scores)
        assert (gradient.sign() == sign).all(), part


def test_non_saturating_values():
    scores = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    loss = ADVERSARIAL_LOSSES["ns"]
    expected = torch.tensor([[math.log(2)], [math.log1p(math.exp(-2))]], dtype=torch.float64)
    torch.testing.assert_close(loss.G_fake(scores), expected)
    torch.testing.assert_close(loss.D_fake(-scores), expected)


def test_hinge_stops_at_the_margin():
    scores = torch.tensor([[-2.0], [0.5], [2.0]])
    loss = ADVERSARIAL_LOSSES["hinge"]
    assert loss.D_real(scores).tolist() == [[3.0], [0.5], [0.0]]
    assert loss.D_fake(scores).tolist() == [[0.0], [1.5], [3.0]]
    assert loss.G_fake(scores).tolist() == [[2.0], [-0.5], [-2.0]]


def test_gradient_penalty_of_a_linear_discriminator():
    weight = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    img = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty((img * weight).sum(dim=(1, 2, 3))[:, None], img)
    torch.testing.assert_close(penalty, (weight.norm() - 1).square().expand(5))


def noisy(G):
    """With noise inputs that show, as in a trained generator."""
    for module in G.modules():
        if hasattr(module, "noise_strength"):
            torch.nn.init.constant_(module.noise_strength, 0.5)


def reported(G, D, batch, phase, **settings):
    """What a loss reports at one phase, by name."""
    seen = {}
    loss = StyleGAN2Loss(G, D, report=lambda name, value: seen.setdefault(name, value), **settings)
    loss.accumulate_gradients(phase=phase, gain=1, **batch)
    return seen


@pytest.mark.parametrize("phase", ["Gmain", "Dmain"])
def test_zcr_compares_images_that_differ_in_nothing_but_z(nets, phase):
    """Mixed-in styles, noise inputs and augmentations are the same for both."""
    G, D, batch = nets
    noisy(G)
    pipe = AugmentPipe(xflip=1, scale=1, brightness=1, noise=1)
    for noise, expected in ((0.0, 0.0), (0.5, None)):
        weights = ConsistencyWeights(G=1.0, D=1.0, noise=noise)
        seen = reported(
            G, D, batch, phase, zcr=weights, style_mixing_prob=1.0, augment=pipe, pl_weight=0.0
        )
        change = seen[f"Loss/zcr/{phase[0]}"]
        assert (change == expected).all() if expected is not None else (change > 0).all()


def test_zcr_draws_what_follows_anew(nets):
    G, D, batch = nets
    drawn = []
    for zcr in (None, ConsistencyWeights()):
        torch.manual_seed(3)
        torch.randn_like(batch["gen_z"])  # by which latents move
        if zcr is not None:
            torch.manual_seed(3)
        loss = StyleGAN2Loss(G, D, report=no_report, zcr=zcr, pl_weight=0.0)
        loss.accumulate_gradients(phase="Dmain", gain=1, **batch)
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn), "the second pass leaves the generator where the first left it"


def test_zcr_wants_g_to_change_with_z_and_d_not_to(nets):
    """A step along the gradient moves images of G apart, and scores of D together."""
    G, D, batch = nets
    settings = dict(style_mixing_prob=0.0, pl_weight=0.0)
    for phase, net, grows in (("Gmain", G, True), ("Dmain", D, False)):
        name, weights = f"Loss/zcr/{phase[0]}", ConsistencyWeights(G=1e4, D=1e4, noise=0.5)
        torch.manual_seed(1)
        for other in (G, D):
            other.requires_grad_(other is net).zero_grad()
        before = reported(G, D, batch, phase, zcr=weights, **settings)[name].mean()
        norm = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p.sub_(p.grad * (0.01 / norm))
        torch.manual_seed(1)
        after = reported(G, D, batch, phase, zcr=weights, **settings)[name].mean()
        assert (after > before) == grows


def test_latents_of_zcr_do_not_move_the_mean_of_w(nets):
    G, D, batch = nets
    means = []
    for zcr in (None, ConsistencyWeights()):
        G.mapping.w_avg.zero_()
        run(G, D, batch, "Gmain", zcr=zcr, style_mixing_prob=0.0)
        means.append(G.mapping.w_avg.clone())
    assert torch.equal(*means)


def test_zcr_of_nothing_is_nothing():
    images = torch.rand(3, 1, 4, 4)
    assert latent_consistency(images, images).tolist() == [0, 0, 0]
    assert latent_consistency(images, images + 2).tolist() == pytest.approx([4, 4, 4])
    assert ConsistencyWeights() == (0.02, 0.2, 0.1)


class SmoothD(torch.nn.Module):
    """A float64 discriminator with derivatives of every order."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 3, 3).double()
        self.out = torch.nn.Linear(12, 1).double()

    def forward(self, img):
        return self.out(torch.tanh(self.conv(img)).flatten(1))


def r1_of(D, img):
    return r1_penalty(D(img), img)


def gradient_penalty_of(D, img):
    return gradient_penalty(D(img), img)


def consistency_of(D, img):
    return latent_consistency(D(img), D(img * 1.1))


@pytest.mark.parametrize("function", [r1_of, gradient_penalty_of, consistency_of])
def test_gradients_of_regularisers_in_float64(function):
    """By the images and by the weights of D, against finite differences."""
    D = SmoothD()
    img = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*D.named_parameters(), strict=True)

    def penalty(img, *weights):
        replaced = dict(zip(names, weights, strict=True))
        call = lambda x: torch.func.functional_call(D, replaced, (x,))  # noqa: E731
        return function(call, img)

    assert torch.autograd.gradcheck(penalty, (img, *weights))


def test_gradients_of_path_lengths_in_float64():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 16).double()
    ws = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def lengths(ws, weight, bias):
        images = torch.tanh(torch.nn.functional.linear(ws, weight, bias)).sum(dim=1)
        return path_lengths(images.reshape(2, 1, 4, 4), ws, noise)

    assert torch.autograd.gradcheck(lengths, (ws, layer.weight, layer.bias))


def test_wgan_gp_adds_the_penalty_between_real_and_generated(nets):
    G, D, batch = nets
    run(G, D, batch, "Dmain", adversarial="wgan")
    plain = gradients(D)
    run(G, D, batch, "Dmain", adversarial="wgan-gp", gp_weight=0.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(D), strict=True))
    run(G, D, batch, "Dmain", adversarial="wgan-gp", gp_weight=10.0)
    assert not all(torch.equal(a, b) for a, b in zip(plain, gradients(D), strict=True))


def test_real_scores_are_handed_to_the_observer(nets):
    G, D, batch = nets
    seen = []
    for phases, calls in ((["Gmain"], 0), (["Dmain"], 1), (["Dreg"], 1)):
        seen.clear()
        run(G, D, batch, *phases, r1_gamma=1.0, observe_real=seen.append)
        assert len(seen) == calls and all(len(scores) == 4 for scores in seen)
