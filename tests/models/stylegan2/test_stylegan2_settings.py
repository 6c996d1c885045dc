import pytest

from dnnlib.errors import OptionError
from models.stylegan2.settings import CHANNEL_BASE, LOSSES
from tests import tiny
from training.networks import Discriminator
from training.objectives import ADVERSARIAL_LOSSES
from training.settings.config import make_config


@pytest.mark.parametrize("resume", [None, "net.pkl"])
def test_resume_turns_the_ema_rampup_off(resume):
    assert tiny.config(resume=resume).ema_rampup == (0.05 if resume is None else None)


def test_batches_that_cannot_be_split():
    with pytest.raises(OptionError, match="--batch=10 cannot be split over --gpus=4"):
        tiny.config(batch=10, gpus=4)
    with pytest.raises(OptionError, match="--batch=2 cannot be split over --gpus=4"):
        tiny.config(batch=2, gpus=4)
    with pytest.raises(OptionError, match="group of 4: choose another --batch"):
        tiny.config(batch=10)
    assert tiny.config(batch=3).batch_gpu == 3, "a group may be as small as the batch"


def test_gradient_accumulation():
    config = make_config(dict(data="d", cfg="paper256"), resolution=256)
    assert (config.batch, config.batch_gpu) == (64, 8)
    config = make_config(dict(data="d", cfg="paper256", batch=16), resolution=256)
    assert config.batch_gpu == 16


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_comes_with_a_clamp(precision):
    config = tiny.config(precision=precision, device="cuda")
    assert (config.num_half_res, config.conv_clamp) == (4, 256)
    assert (tiny.config().num_half_res, tiny.config().conv_clamp) == (0, None)


@pytest.mark.parametrize(("d_arch", "layers"), [("orig", 5), ("skip", 6), ("resnet", 7)])
def test_freezed_is_bounded_by_the_layers_of_the_discriminator(d_arch, layers):
    settings = dict(resolution=16, d_arch=d_arch)
    D = Discriminator(0, 16, 1, architecture=d_arch, channel_base=64)
    assert layers == sum(D.get_submodule(f"b{size}").num_layers for size in (16, 8))
    assert tiny.config(freezed=layers, **settings).freezed == layers
    with pytest.raises(OptionError, match=f"--freezed must be at most {layers}, the layers"):
        tiny.config(freezed=layers + 1, **settings)


def test_lowest_scale():
    assert tiny.config(g_scale=8 / 16384).g_scale == 8 / 16384, "one channel at 8x8"
    with pytest.raises(OptionError, match="--precision=fp16 needs CUDA: use fp32 or bf16"):
        tiny.config(precision="fp16", device="cpu")


def test_scales_are_of_the_channels():
    config = tiny.config(g_scale=0.5, d_scale=2.0)
    assert config.channel_bases == (CHANNEL_BASE // 2, CHANNEL_BASE * 2)


def test_choices_are_those_that_exist():
    assert tuple(ADVERSARIAL_LOSSES) == LOSSES
