import copy

import pytest
import torch

from models.stylegan2.stages import build_stages
from tests import tiny
from training.model import TrainingState
from training.stages import run_phase

TINY = dict(g_scale=1 / 256, d_scale=1 / 256, z_dim=8, w_dim=8, batch=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=16)


def make(data, report=None, **options):
    torch.manual_seed(0)
    return tiny.model(data, report or ignore, **TINY | options)


@pytest.fixture
def model(data):
    return make(data)


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


def learning_rates(model):
    return [model.optimizers[name].param_groups[0]["lr"] for name in "GD"]


def test_phases_follow_the_settings(model):
    def names(**options):
        config = tiny.config(**TINY | options)
        coop, adversarial = build_stages(config, model.parts, model.loss, ignore)
        return [phase.name for stage in (coop, adversarial) if stage for phase in stage.phases]

    assert names(gamma=0.1, pl_weight=2.0) == ["Gmain", "Greg", "Dmain", "Dreg"]
    assert names(gamma=0.0) == ["Gmain", "Dmain"]
    assert names(gamma=0.0, coop_kimg=1) == ["Gmain", "Dmain", "Gmain", "Dmain"]
    assert names(gamma=0.1, pl_weight=2.0, lazy=False) == ["Gboth", "Dboth"]
    assert names(gamma=0.1, lazy=False, coop_kimg=1) == ["Gmain", "Dmain", "Gmain", "Dboth"]


def test_regularisers_run_lazily(data):
    model = make(data, gamma=0.1, pl_weight=2.0)
    adversarial = model.stages.adversarial
    assert {phase.name: phase.interval for phase in adversarial.phases} == {
        "Gmain": 1,
        "Greg": 4,
        "Dmain": 1,
        "Dreg": 16,
    }
    # StyleGAN2, appendix B: lr and betas are corrected for the additional steps.
    D_opt = model.optimizers["D"].param_groups[0]
    assert D_opt["lr"] == pytest.approx(0.0025 * 16 / 17)
    assert D_opt["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))


def test_regularisers_that_are_not_lazy(data):
    model = make(data, gamma=0.1, pl_weight=2.0, lazy=False, lr_d=0.01, coop_kimg=1)
    for stage in model.stages:
        assert {phase.interval for phase in stage.phases} == {1}
        TrainingState(model).set_learning_rates(stage)
        assert learning_rates(model) == [0.0025, 0.01]
        for optimizer in model.optimizers.values():
            assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)


@pytest.mark.parametrize("options", [{}, {"sn": True}, {"lazy": False}, {"zcr": True}])
def test_looking_ahead_is_silent_and_taken_back(data, options):
    reported = []
    model = make(
        data,
        lambda name, value: reported.append(name),
        gamma=0.1,
        aug="ada",
        augpipe="blit",
        brc_lookahead=3,
        brc=True,
        **options,
    )
    adversarial = model.stages.adversarial
    G_main, *others = adversarial.phases
    D_opt = model.optimizers["D"]
    observed = []
    adversarial.loss.observe_real = observed.append
    before = {name: copy.deepcopy(net) for name, net in model.nets.items()}
    drawn = []

    def draw():
        drawn.append(batches(1, size=8))
        return drawn[-1]

    with G_main.context(draw):
        assert len(drawn) == 3
        D = zip(model.parts.D.parameters(), before["D"].parameters(), strict=True)
        assert any((a != b).any() for a, b in D)
        assert len(D_opt.state_dict()["state"]) > 0
        assert all(p.grad is None for p in model.parts.D.parameters())
        for name, value in model.parts.G.state_dict().items():
            assert torch.equal(value, before["G"].state_dict()[name]), name
        run_phase(adversarial, G_main, draw(), lambda name, value: reported.append(name))
    for name, value in model.parts.D.state_dict().items():
        assert torch.equal(value, before["D"].state_dict()[name]), name
    assert not D_opt.state_dict()["state"]
    G = zip(model.parts.G.parameters(), before["G"].parameters(), strict=True)
    assert any((a != b).any() for a, b in G), "G has learnt"
    assert not observed, "ADA does not see steps that are taken back"
    assert sorted(set(reported)) == sorted(reported), "each name once: of the step of G alone"
    assert not {"Loss/D/loss", "Loss/grad_norm/Dmain"} & set(reported)
    assert [phase.context(draw) for phase in others] and len(drawn) == 4


def test_stages_share_networks_and_set_their_learning_rates(data):
    model = make(data, coop_kimg=1, coop_lr_g=0.01, coop_lr_d=0.02)
    for stage, lr_g, lr_d in zip(model.stages, (0.01, 0.0025), (0.02, 0.0025), strict=True):
        assert stage.nets == {"G": model.parts.G, "D": model.parts.D}
        TrainingState(model).set_learning_rates(stage)
        assert learning_rates(model) == pytest.approx([lr_g * 4 / 5, lr_d * 16 / 17])


def test_every_setting_of_the_cooperative_stage_reaches_its_loss(data):
    model = make(
        data,
        coop_kimg=1,
        coop_steps=3,
        coop_step_size=0.5,
        coop_noise=0.2,
        coop_step_clip=0.3,
        coop_noise_schedule="constant",
        coop_clamp=0.7,
        coop_energy_l2=0.4,
    )
    loss = model.stages.cooperative.loss
    assert loss.noise_stds == [0.2, 0.2, 0.2]
    assert (loss.step_size, loss.energy_l2) == (0.5, 0.4)
    assert loss.bounds == {"step_clip": 0.3, "clamp": 0.7}
    assert (loss.G, loss.D, loss.report) == (model.parts.G, model.parts.D, ignore)


def test_the_average_generator_is_in_eval_mode(model):
    assert not any(module.training for module in model.parts.G_ema.modules())
    assert all(
        module.training for net in (model.parts.G, model.parts.D) for module in net.modules()
    )


def test_micro_batches_give_the_gradient_of_the_whole(data):
    """With the batch statistics out of the way, accumulation changes nothing."""
    whole = {k: torch.cat([b[k] for b in batches(2)]) for k in batches(1)[0]}
    gradients = []
    for micro_batches in ([whole], batches(2)):
        model = make(data, coop_kimg=1, coop_noise=0.0)
        model.parts.D.b4.mbstd.group_size = 1
        for module in model.parts.G.modules():
            if hasattr(module, "use_noise"):
                module.use_noise = False
        for optimizer in model.optimizers.values():
            optimizer.param_groups[0]["lr"] = 0.0  # both phases see the same networks
        stage = model.stages.cooperative
        for phase in stage.phases:
            run_phase(stage, phase, micro_batches, ignore)
        parameters = [*model.parts.G.parameters(), *model.parts.D.parameters()]
        gradients.append(torch.cat([p.grad.flatten() for p in parameters]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_averages_move_only_when_the_generator_has_stepped(data):
    model = make(data, ema_kimg=0.0)
    with torch.no_grad():
        for parameter in model.parts.G.parameters():
            parameter.add_(1.0)
    before = copy.deepcopy(model.parts.G_ema.state_dict())
    stage, progress = model.stages.adversarial, TrainingState(model).progress
    model.after_iteration(stage, {"D"}, progress)
    assert all(torch.equal(v, before[name]) for name, v in model.parts.G_ema.state_dict().items())
    model.after_iteration(stage, {"G", "D"}, progress)
    for a, b in zip(model.parts.G_ema.parameters(), model.parts.G.parameters(), strict=True):
        torch.testing.assert_close(a, b)
