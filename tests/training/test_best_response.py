"""The best-response constraint: its equations, and that looking ahead leaves no trace."""

import copy

import pytest
import torch

from training.best_response import look_ahead, response_weight
from training.loss import StyleGAN2Loss
from training.objectives import ADVERSARIAL_LOSSES, gradient_penalty


class Linear(torch.nn.Module):
    """A generator or discriminator so small that finite differences are cheap; float64."""

    def __init__(self, inputs, outputs, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(inputs, 5), torch.nn.Softplus(), torch.nn.Linear(5, outputs)
        ).double()


class TinyG(Linear):
    """z [N, 3] to images [N, 1, 2, 2], in the two steps of StyleGAN2's generator."""

    def __init__(self):
        super().__init__(3, 4, seed=0)

    def mapping(self, z, c, skip_w_avg_update=False):
        return z[:, None]

    def synthesis(self, ws):
        return self.layers(ws[:, 0]).reshape(-1, 1, 2, 2)


class TinyD(Linear):
    def __init__(self):
        super().__init__(4, 1, seed=1)

    def forward(self, img, c):
        return self.layers(img.flatten(1))


def no_report(name, value):
    pass


@pytest.fixture
def batch():
    torch.manual_seed(2)
    none = torch.zeros(6, 0)
    return dict(
        real_img=torch.randn(6, 1, 2, 2, dtype=torch.float64),
        real_c=none,
        gen_z=torch.randn(6, 3, dtype=torch.float64),
        gen_c=none,
    )


def flat_gradient(function, net, step=1e-6):
    """Central differences of a function without arguments by every weight of `net`."""
    gradient = []
    with torch.no_grad():
        for p in net.parameters():
            for i in range(p.numel()):
                value = p.view(-1)[i].item()
                p.view(-1)[i] = value + step
                above = function()
                p.view(-1)[i] = value - step
                below = function()
                p.view(-1)[i] = value
                gradient.append((above - below) / (2 * step))
    return torch.stack(gradient)


@pytest.mark.parametrize("name", ["ns", "hinge", "wgan", "wgan-gp"])
def test_the_gradient_of_g_is_the_implicit_one(name, batch):
    """Against finite differences of both objectives by both networks; nothing of ours but D, G."""
    G, D = TinyG(), TinyD()
    objective = ADVERSARIAL_LOSSES[name]

    def fake_scores():
        return D(G.synthesis(batch["gen_z"][:, None]), None)

    def F():
        return objective.G_fake(fake_scores()).mean()

    def f():
        real = objective.D_real(D(batch["real_img"], None)).mean()
        return objective.D_fake(fake_scores()).mean() + real + penalty()

    @torch.enable_grad()
    def penalty():
        if not objective.gradient_penalty:
            return 0
        torch.manual_seed(3)
        share = torch.rand(6, 1, 1, 1, dtype=torch.float64)
        mixed = batch["real_img"].lerp(G.synthesis(batch["gen_z"][:, None]), share)
        return 10 * gradient_penalty(D(mixed, None), mixed).mean().detach()

    F_D, f_D, F_G, f_G = (flat_gradient(h, net) for net in (D, G) for h in (F, f))
    c = -(F_D @ f_D) / (f_D @ f_D)
    assert (abs(c) > 0.1) or name == "wgan-gp", "where there is a bound it is in use"
    if objective.response_limit is not None:
        c = c.clamp(-objective.response_limit, objective.response_limit)
    expected = F_G + c * f_G
    assert (c * f_G).norm() > 1e-3 * F_G.norm(), "otherwise the comparison shows nothing"

    D.requires_grad_(False)
    torch.manual_seed(3)
    loss = StyleGAN2Loss(
        G, D, adversarial=name, brc=True, style_mixing_prob=0.0, pl_weight=0.0, report=no_report
    )
    loss.accumulate_gradients(phase="Gmain", gain=1, **batch)
    actual = torch.cat([p.grad.flatten() for p in G.parameters()])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None and not p.requires_grad for p in D.parameters())


def test_the_outer_product_stands_for_the_hessian(batch):
    """c f is what the paper's implicit term gives for H = b b^T with b = df/dD."""
    weights = [torch.randn(7, dtype=torch.float64, requires_grad=True)]
    x = torch.randn(7, dtype=torch.float64)
    F, f = (weights[0] * x).sin().sum(), (weights[0] * x).square().sum()
    a, b = (torch.autograd.grad(h, weights, retain_graph=True)[0] for h in (F, f))
    pseudo_inverse = torch.linalg.pinv(torch.outer(b, b))
    # dF/dG - (df/dG b^T) (b b^T)^+ a: the factor of df/dG is a number.
    expected = -(b @ pseudo_inverse @ a)
    torch.testing.assert_close(response_weight(F, f, weights), expected)


def test_a_zero_sum_game_cancels(batch):
    """With F = -f, D's best response undoes what G gains: c = 1 and F + c f = 0."""
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    f = (w**3).sum()
    c = response_weight(-f, f, [w])
    torch.testing.assert_close(c, torch.ones_like(c))
    (gradient,) = torch.autograd.grad(-f + c * f, w)
    assert gradient.abs().max() < 1e-6


def test_wgan_is_rescaled_by_one_minus_c(batch):
    G, D = TinyG(), TinyD()
    D.requires_grad_(False)
    settings = dict(adversarial="wgan", style_mixing_prob=0.0, pl_weight=0.0)
    gradients, seen = [], {}
    for brc in (False, True):
        G.zero_grad()
        loss = StyleGAN2Loss(G, D, brc=brc, report=seen.__setitem__, **settings)
        loss.accumulate_gradients(phase="Gmain", gain=1, **batch)
        gradients.append(torch.cat([p.grad.flatten() for p in G.parameters()]))
    c = seen["Loss/brc_weight"]
    assert 0 < abs(c) <= 0.1
    torch.testing.assert_close(gradients[1], (1 - c) * gradients[0])


def test_the_follower_has_no_gradient():
    """Nothing to respond with: c is zero, not a division by zero."""
    w = torch.zeros(3, requires_grad=True)
    assert response_weight(w.sum(), (w * 0).sum(), [w]) == 0
    overflown = (w * float("inf")).sum()
    assert response_weight(overflown, w.sum(), [w]).isfinite()


# ---------------------------------------------------------------------------------------------
# Looking ahead


def everything(net, optimizer):
    """Every tensor and number that training `net` depends on, copied."""
    return copy.deepcopy((net.state_dict(), optimizer.state_dict()))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def network():
    """One with buffers that a forward pass changes."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))


def stepper(net, optimizer):
    def step():
        optimizer.zero_grad()
        net(torch.randn(6, 4)).square().sum().backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("earlier", [0, 2], ids=["first step", "with moments"])
@pytest.mark.parametrize("fails", [False, True])
def test_looking_ahead_leaves_no_trace(earlier, fails):
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    step = stepper(net, optimizer)
    for _ in range(earlier):
        step()
    before = everything(net, optimizer)
    identities = [id(p) for p in net.parameters()]
    try:
        with look_ahead(net, optimizer, [step] * 3):
            assert not same(everything(net, optimizer), before)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert same(everything(net, optimizer), before)
    assert [id(p) for p in net.parameters()] == identities, "the optimizer still trains them"


def test_a_step_after_looking_ahead_is_the_step_without_it():
    results = []
    for ahead in (0, 4):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        step = stepper(net, optimizer)
        torch.manual_seed(5)
        step()
        with look_ahead(net, optimizer, [step] * ahead):
            pass
        torch.manual_seed(6)
        step()
        results.append(everything(net, optimizer))
    assert same(*results)
