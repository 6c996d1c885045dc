import dataclasses
import json
import math

import pytest

from tests import tiny
from training.config import ConfigError, TrainingConfig, setting_docs


def test_options_override_the_preset():
    config = TrainingConfig.from_options(
        dict(data="d.zip", cfg="cifar", gamma=0.0, kimg=None), resolution=32
    )
    assert (config.gamma, config.kimg, config.batch, config.resolution) == (0.0, 100000, 64, 32)


@pytest.mark.parametrize("resume", [None, "net.pkl"])
def test_resume_turns_the_ema_rampup_off(resume):
    assert tiny.config(resume=resume).ema_rampup == (0.05 if resume is None else None)


def test_json_round_trip():
    config = tiny.config(subset=7, coop_noise="literal", coop_clamp=1.0, coop_lr_g=0.001)
    text = config.to_json()
    assert TrainingConfig.from_json(text) == config
    json.loads(text, parse_constant=pytest.fail)  # Infinity is no JSON
    assert TrainingConfig.from_json(tiny.config().to_json()) == tiny.config()


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.config().kimg = 2


BAD_VALUES = [
    *[(name, -1, "at least 0") for name in ("workers", "freezed", "coop_kimg")],
    *[(name, -0.5, "at least 0") for name in ("gamma", "coop_energy_l2")],
    *[(name, 0, "at least 1") for name in ("kimg", "batch", "gpus", "snap", "subset")],
    ("seed", -1, "from 0 to 2"),
    ("seed", 2**32, "from 0 to 2"),
    ("coop_steps", 0, "at least 1"),
    ("coop_step_size", 0.0, "positive"),
    ("coop_noise", -0.1, "not be negative"),
    ("coop_noise_schedule", "cosine", "linear, constant"),
    *[
        (name, 0.0, "positive")
        for name in ("coop_step_clip", "coop_clamp", "coop_lr_g", "coop_lr_d")
    ],
    ("coop_clamp", math.nan, "finite"),
    *[
        (name, math.nan, "finite")
        for name in ("gamma", "coop_noise", "coop_step_size", "coop_lr_g")
    ],
    ("gamma", math.inf, "finite"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_VALUES)
def test_values_out_of_range(name, value, message):
    with pytest.raises(ConfigError) as caught:
        tiny.config(**{name: value})
    text = str(caught.value)
    assert text.startswith(f"--{name.replace('_', '-')} must") and message in text
    assert ";" not in text and "\n" not in text, "one problem, one message"


def test_all_problems_in_one_message():
    with pytest.raises(ConfigError, match="--kimg .*; --snap .*; --coop-steps "):
        tiny.config(kimg=0, snap=-3, coop_steps=-1)


@pytest.mark.parametrize("changes", [dict(cfg="nonsense"), dict(lr=0.0)])
def test_what_only_a_program_can_get_wrong(changes):
    with pytest.raises(ConfigError):
        dataclasses.replace(tiny.config(), **changes)


def test_batches_that_cannot_be_split():
    with pytest.raises(ConfigError, match="--batch=10 cannot be split over --gpus=4"):
        tiny.config(batch=10, gpus=4)
    with pytest.raises(ConfigError, match="--batch=2 cannot be split over --gpus=4"):
        tiny.config(batch=2, gpus=4)
    with pytest.raises(ConfigError, match="group of 4: choose another --batch"):
        tiny.config(batch=10)
    assert tiny.config(batch=3).batch_gpu == 3, "a group may be as small as the batch"


def test_gradient_accumulation():
    config = TrainingConfig.from_options(dict(data="d", cfg="paper256"), resolution=256)
    assert (config.batch, config.batch_gpu) == (64, 8)
    config = TrainingConfig.from_options(dict(data="d", cfg="paper256", batch=16), resolution=256)
    assert config.batch_gpu == 16


def test_conv_clamp_belongs_to_float16():
    assert tiny.config(num_fp16_res=4).conv_clamp == 256
    assert tiny.config(num_fp16_res=0).conv_clamp is None


def test_training_set_kwargs():
    plain = tiny.config(cond=True, mirror=True).training_set_kwargs()
    assert plain == dict(
        class_name="training.dataset.ImageFolderDataset", path="tiny.zip", use_labels=True,
        max_size=None, xflip=True, resolution=8,
    )  # fmt: skip
    subset = tiny.config(subset=5, seed=3).training_set_kwargs()
    assert (subset["max_size"], subset["random_seed"]) == (5, 3)


def test_every_setting_is_documented():
    docs = setting_docs()
    assert docs.keys() == {field.name for field in dataclasses.fields(TrainingConfig)}
    assert all(docs.values())


def test_choices_are_those_that_exist():
    from training.config import LOSSES
    from training.objectives import ADVERSARIAL_LOSSES

    assert tuple(ADVERSARIAL_LOSSES) == LOSSES
