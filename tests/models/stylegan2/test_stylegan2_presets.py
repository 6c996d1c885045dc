import pytest

from models.stylegan2.presets import COMMON, PRESETS
from models.stylegan2.settings import StyleGAN2Config
from training.settings.config import make_config

COLUMNS = "ref_gpus kimg batch mbstd_group scale lr gamma ema_kimg ema_rampup mapping_layers"
# The official table.
OFFICIAL = {
    "stylegan2": (8, 25000, 32, 4, 2, 0.002, 10, 10, None, 8),
    "paper256": (8, 25000, 64, 8, 1, 0.0025, 1, 20, None, 8),
    "paper512": (8, 25000, 64, 8, 2, 0.0025, 0.5, 20, None, 8),
    "paper1024": (8, 25000, 32, 4, 2, 0.002, 2, 10, None, 8),
    "cifar": (2, 100000, 64, 32, 2, 0.0025, 0.01, 500, 0.05, 2),
}


@pytest.mark.parametrize("cfg", OFFICIAL)
def test_official_presets(cfg):
    values = COMMON | PRESETS[cfg]
    values |= dict(ref_gpus=values["batch"] // values["batch_gpu"], scale=values["g_scale"])
    assert tuple(values[name] for name in COLUMNS.split()) == OFFICIAL[cfg]
    assert values["d_scale"] == values["scale"]
    assert (values["z_dim"], values["w_dim"], values["channel_max"]) == (512, 512, 512)
    small = cfg == "cifar"
    assert values["pl_weight"] == (0 if small else 2)
    assert values["style_mixing"] == (0 if small else 0.9)
    assert values["d_arch"] == ("orig" if small else "resnet")
    reference_gpus, batch = OFFICIAL[cfg][0], OFFICIAL[cfg][2]
    complete = StyleGAN2Config.preset(cfg, resolution=32, gpus=1)
    assert complete["batch_gpu"] == batch // reference_gpus


@pytest.mark.parametrize(
    ("resolution", "gpus", "batch", "mbstd_group", "scale", "lr"),
    [
        (16, 1, 32, 4, 1, 0.0025),
        (256, 1, 16, 4, 1, 0.0025),
        (256, 8, 64, 4, 1, 0.0025),
        (512, 1, 8, 4, 2, 0.0025),
        (1024, 2, 8, 4, 2, 0.002),
        (2048, 1, 2, 2, 2, 0.002),
        (8192, 4, 4, 1, 2, 0.002),
        (32, 128, 128, 1, 1, 0.0025),
    ],
)
def test_auto(resolution, gpus, batch, mbstd_group, scale, lr):
    values = StyleGAN2Config.preset("auto", resolution=resolution, gpus=gpus)
    assert (values["batch"], values["batch_gpu"]) == (batch, batch // gpus)
    assert (values["g_scale"], values["d_scale"]) == (scale, scale)
    assert values["mbstd_group"] == mbstd_group
    assert (values["lr"], values["kimg"], values["mapping_layers"]) == (lr, 25000, 2)
    assert values["gamma"] == pytest.approx(0.0002 * resolution**2 / batch)
    assert values["ema_kimg"] == pytest.approx(batch * 10 / 32)
    assert values["ema_rampup"] == 0.05


def test_a_given_batch_is_split_over_the_processes():
    assert StyleGAN2Config.preset("cifar", resolution=32, gpus=4, batch=128)["batch_gpu"] == 32


@pytest.mark.parametrize("cfg", list(StyleGAN2Config.presets()))
def test_every_preset_makes_a_valid_config(cfg):
    config = make_config(dict(data="d.zip", cfg=cfg), resolution=64)
    assert config.batch % config.batch_gpu == 0


def test_presets_of_the_paper():
    best = make_config(dict(data="d", cfg="cifar-coopinit"), resolution=32)
    cifar = make_config(dict(data="d", cfg="cifar"), resolution=32)
    changed = {name for name, value in vars(best).items() if getattr(cifar, name) != value}
    assert changed == {"cfg", "gamma", "coop_kimg", "aug", "kimg"}
    assert (best.gamma, best.coop_kimg, best.aug, best.kimg) == (0, 750, "noaug", 25000)

    base = make_config(dict(data="d", cfg="coopinit-base"), resolution=32)
    channels = [min(round(16384 * base.d_scale) // size, 512) for size in (4, 8, 16, 32)]
    assert channels == [512, 512, 256, 128]
    assert (base.mapping_layers, base.pl_weight, base.style_mixing) == (2, 0, 0)
    assert (base.d_arch, base.lazy, base.lr, base.batch, base.kimg) == (
        "orig",
        False,
        0.0025,
        64,
        25000,
    )


@pytest.mark.parametrize("cfg", ["digits", "cifar", "paper256"])
@pytest.mark.parametrize("gpus", [1, 2, 8, 16])
def test_processes_share_the_batch_of_a_preset(cfg, gpus):
    values = StyleGAN2Config.preset(cfg, resolution=32, gpus=gpus)
    assert values["batch"] % (values["batch_gpu"] * gpus) == 0


def test_presets_are_not_shared():
    StyleGAN2Config.preset("cifar", resolution=32, gpus=1)["gamma"] = 99
    assert StyleGAN2Config.preset("cifar", resolution=32, gpus=1)["gamma"] == 0.01
