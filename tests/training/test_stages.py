import copy
import math

import pytest
import torch

from training.settings.families import make_config
from training.stages import GRADIENT_LIMIT, Phase, Stage, build_stages, enter_stage, run_phase
from training.state import create_state


class TinyData:
    """What `create_state` asks of a data set."""

    resolution, num_channels, label_dim = 8, 1, 0


def config(**options):
    tiny = dict(data="x.zip", cfg="digits", g_scale=1 / 256, d_scale=1 / 256, z_dim=8, w_dim=8)
    return make_config(tiny | options, resolution=8)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return create_state(config(), TinyData, torch.device("cpu"))


def ignore(name, value):
    pass


def batches(count=2, size=4):
    torch.manual_seed(1)
    none = torch.zeros(size, 0)
    return [
        dict(
            real_img=torch.rand(size, 1, 8, 8), real_c=none, gen_z=torch.randn(size, 8), gen_c=none
        )
        for _ in range(count)
    ]


def test_phases_follow_the_settings(state):
    def names(**options):
        coop, adversarial = build_stages(config(**options), state, ignore)
        return [phase.name for stage in (coop, adversarial) if stage for phase in stage.phases]

    assert names(gamma=0.1, pl_weight=2.0) == ["Gmain", "Greg", "Dmain", "Dreg"]
    assert names(gamma=0.0) == ["Gmain", "Dmain"]
    assert names(gamma=0.0, coop_kimg=1) == ["Gmain", "Dmain", "Gmain", "Dmain"]
    assert names(gamma=0.1, pl_weight=2.0, lazy=False) == ["Gboth", "Dboth"]
    assert names(gamma=0.1, lazy=False, coop_kimg=1) == ["Gmain", "Dmain", "Gmain", "Dboth"]


def test_regularisers_run_lazily(state):
    _, adversarial = build_stages(config(gamma=0.1, pl_weight=2.0), state, ignore)
    assert {phase.name: phase.interval for phase in adversarial.phases} == {
        "Gmain": 1,
        "Greg": 4,
        "Dmain": 1,
        "Dreg": 16,
    }
    # StyleGAN2, appendix B: lr and betas are corrected for the additional steps.
    D_opt = state.D_opt.param_groups[0]
    assert D_opt["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert D_opt["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


def test_regularisers_that_are_not_lazy():
    settings = config(gamma=0.1, pl_weight=2.0, lazy=False, lr_d=0.01, coop_kimg=1)
    state = create_state(settings, TinyData, torch.device("cpu"))
    coop, adversarial = build_stages(settings, state, ignore)
    for stage in (coop, adversarial):
        assert {phase.interval for phase in stage.phases} == {1}
        enter_stage(stage, settings, state)
        for optimizer, lr in ((state.G_opt, 0.0025), (state.D_opt, 0.01)):
            assert optimizer.param_groups[0]["lr"] == lr
            assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)


@pytest.mark.parametrize("options", [{}, {"sn": True}, {"lazy": False}, {"zcr": True}])
def test_looking_ahead_is_silent_and_taken_back(options):
    settings = config(gamma=0.1, aug="ada", augpipe="blit", brc_lookahead=3, brc=True, **options)
    torch.manual_seed(0)
    state = create_state(settings, TinyData, torch.device("cpu"))
    reported = []
    _, adversarial = build_stages(settings, state, lambda name, value: reported.append(name))
    G_main, *others = adversarial.phases
    observed = []
    adversarial.loss.observe_real = observed.append
    before = copy.deepcopy(state)
    drawn = []

    def draw():
        drawn.append(batches(1, size=8))
        return drawn[-1]

    with G_main.context(draw):
        assert len(drawn) == 3
        D = zip(state.D.parameters(), before.D.parameters(), strict=True)
        assert any((a != b).any() for a, b in D)
        assert len(state.D_opt.state_dict()["state"]) > 0
        assert all(p.grad is None for p in state.D.parameters())
        for name, value in state.G.state_dict().items():
            assert torch.equal(value, before.G.state_dict()[name]), name
        run_phase(adversarial, G_main, draw(), lambda name, value: reported.append(name))
    for name, value in state.D.state_dict().items():
        assert torch.equal(value, before.D.state_dict()[name]), name
    assert not state.D_opt.state_dict()["state"]
    G = zip(state.G.parameters(), before.G.parameters(), strict=True)
    assert any((a != b).any() for a, b in G), "G has learnt"
    assert not observed, "ADA does not see steps that are taken back"
    assert sorted(set(reported)) == sorted(reported), "each name once: of the step of G alone"
    assert not {"Loss/D/loss", "Loss/grad_norm/Dmain"} & set(reported)
    assert [phase.context(draw) for phase in others] and len(drawn) == 4


def test_stages_share_networks_and_set_their_learning_rates(state):
    settings = config(coop_kimg=1, coop_lr_g=0.01, coop_lr_d=0.02)
    coop, adversarial = build_stages(settings, state, ignore)
    for stage, lr_g, lr_d in ((coop, 0.01, 0.02), (adversarial, 0.0025, 0.0025)):
        assert {phase.net for phase in stage.phases} == {state.G, state.D}
        enter_stage(stage, settings, state)
        assert state.G_opt.param_groups[0]["lr"] == pytest.approx(lr_g * 4 / 5)
        assert state.D_opt.param_groups[0]["lr"] == pytest.approx(lr_d * 16 / 17)


def test_every_setting_of_the_cooperative_stage_reaches_its_loss(state):
    coop, _ = build_stages(
        config(
            coop_kimg=1, coop_steps=3, coop_step_size=0.5, coop_noise=0.2, coop_step_clip=0.3,
            coop_noise_schedule="constant", coop_clamp=0.7, coop_energy_l2=0.4,
        ),
        state,
        ignore,
    )  # fmt: skip
    loss = coop.loss
    assert loss.noise_stds == [0.2, 0.2, 0.2]
    assert (loss.step_size, loss.energy_l2) == (0.5, 0.4)
    assert loss.bounds == {"step_clip": 0.3, "clamp": 0.7}
    assert (loss.G, loss.D, loss.report) == (state.G, state.D, ignore)


def test_the_average_generator_is_in_eval_mode(state):
    assert not any(module.training for module in state.G_ema.modules())
    assert all(module.training for net in (state.G, state.D) for module in net.modules())


class SumOfParameters:
    """Loss whose gradient is `gain` times `slope` for every parameter but the last."""

    def __init__(self, net, slope):
        self.net, self.slope = net, slope

    def accumulate_gradients(self, *, phase, gain, **batch):
        *reached, _ = self.net.parameters()
        sum(p.sum() for p in reached).mul(self.slope * gain).backward()


def one_phase(net, slope, interval=1):
    phase = Phase("Dmain", net, torch.optim.SGD(net.parameters(), lr=1.0), interval)
    loss = SumOfParameters(net, slope)
    return Stage("adversarial", "Loss", loss, (phase,), 1.0, 1.0), phase


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("interval", [1, 4])
def test_gain_is_the_interval_whatever_the_number_of_micro_batches(rounds, interval):
    net = torch.nn.Linear(2, 2, bias=True)
    before = copy.deepcopy(net)
    stage, phase = one_phase(net, slope=0.5, interval=interval)
    run_phase(stage, phase, batches(rounds), ignore)
    torch.testing.assert_close(net.weight, before.weight - 0.5 * interval)
    assert torch.equal(net.bias, before.bias) and (net.bias.grad == 0).all()
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


def test_micro_batches_give_the_gradient_of_the_whole(state):
    """With the batch statistics out of the way, accumulation changes nothing."""
    state.D.b4.mbstd.group_size = 1
    for module in state.G.modules():
        if hasattr(module, "use_noise"):
            module.use_noise = False
    whole = {k: torch.cat([b[k] for b in batches(2)]) for k in batches(1)[0]}
    settings = config(coop_kimg=1, coop_noise=0.0)
    gradients = []
    for micro_batches in ([whole], batches(2)):
        copied = copy.deepcopy(state)
        coop, _ = build_stages(settings, copied, ignore)
        coop = Stage(coop.name, "Coop", coop.loss, coop.phases, 0.0, 0.0)
        enter_stage(coop, settings, copied)  # learning rate 0: both phases see the same networks
        for phase in coop.phases:
            run_phase(coop, phase, micro_batches, ignore)
        nets = (copied.G, copied.D)
        gradients.append(torch.cat([p.grad.flatten() for net in nets for p in net.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)
