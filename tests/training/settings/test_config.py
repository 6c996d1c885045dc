import dataclasses
import json
import math

import pytest

from coopinit_patch.langevin import SCHEDULES
from dnnlib.errors import OptionError
from tests import tiny
from training.settings.config import TrainingConfig, config_from_json, make_config
from training.settings.setting import settings_of


def test_options_override_the_preset():
    config = make_config(dict(data="d.zip", cfg="cifar", gamma=0.0, kimg=None), resolution=32)
    assert (config.gamma, config.kimg, config.batch, config.resolution) == (0.0, 100000, 64, 32)


def test_numbers_of_any_length():
    with pytest.raises(OptionError, match="--seed must be from 0 to 2.32 - 1"):
        tiny.config(seed=10**400)


def test_json_round_trip():
    config = tiny.config(
        subset=7,
        coop_kimg=1,
        coop_noise="literal",
        coop_clamp=1.0,
        coop_lr_g=0.001,
        stop_on=("no-diversity", "non-finite"),
    )
    text = config.to_json()
    assert config_from_json(text) == config
    json.loads(text, parse_constant=pytest.fail)  # Infinity is no JSON
    assert config_from_json(tiny.config().to_json()) == tiny.config()


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
    ("coop_noise", -0.1, "at least 0"),
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
    with pytest.raises(OptionError) as caught:
        tiny.config(**{"coop_kimg": 1, name: value})
    text = str(caught.value)
    assert text.startswith(f"--{name.replace('_', '-')} must") and message in text
    assert ";" not in text and "\n" not in text, "one problem, one message"


def test_all_problems_in_one_message():
    with pytest.raises(OptionError, match="--kimg .*; --snap .*; --coop-steps "):
        tiny.config(kimg=0, snap=-3, coop_kimg=1, coop_steps=-1)


@pytest.mark.parametrize("changes", [dict(cfg="nonsense"), dict(lr=0.0)])
def test_what_only_a_program_can_get_wrong(changes):
    with pytest.raises(OptionError):
        dataclasses.replace(tiny.config(), **changes)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        (dict(device="cpu"), "fp32"),
        (dict(device="cuda"), "fp16"),
        (dict(device="cuda", fp32=True), "fp32"),
        (dict(device="cuda", fp32=False, precision="bf16"), "bf16"),
    ],
)
def test_default_precision(options, precision):
    assert tiny.config(**options).precision == precision


def test_contradictions_and_bad_values_in_one_message():
    with pytest.raises(OptionError) as caught:
        tiny.config(
            fp32=True,
            precision="bf16",
            target=0.5,
            aug="noaug",
            augpipe="bg",
            gp_weight=1.0,
            zcr_d=0.1,
            kimg=0,
            d_scale=0.0,
            lr=0.1,
            lr_g=0.1,
            lr_d=0.1,
            coop_noise="literal",
            coop_noise_schedule="linear",
        )
    for part in (
        "--fp32=1 contradicts --precision=bf16",
        "--target needs --aug=ada; here it is noaug",
        "--augpipe needs --aug=ada or fixed",
        "--gp-weight needs --loss=wgan-gp",
        "--zcr-d needs --zcr=1",
        "--lr has no effect beside --lr-g and --lr-d",
        "--coop-noise-schedule has no effect with --coop-noise=literal",
        "--coop-noise needs --coop-kimg",
        "--coop-noise-schedule needs --coop-kimg",
        "--kimg must be at least 1",
        "--d-scale must be at least",
    ):
        assert part in str(caught.value)


def test_learning_rates():
    assert tiny.config(lr=0.1).learning_rates == (0.1, 0.1)
    config = tiny.config(lr=0.1, lr_d=0.2, coop_kimg=1, coop_lr_g=0.3)
    assert config.learning_rates == (0.1, 0.2)
    assert config.coop_learning_rates == (0.3, 0.2)
    assert config.lazy_ratio(4) == 0.8
    assert tiny.config(lazy=False).lazy_ratio(4) == 1


def test_training_set_kwargs():
    plain = tiny.config(cond=True, mirror=True).training_set_kwargs()
    assert plain == dict(
        class_name="training.dataset.ImageFolderDataset",
        path="tiny.zip",
        use_labels=True,
        max_size=None,
        xflip=True,
        resolution=8,
    )
    subset = tiny.config(subset=5, seed=3).training_set_kwargs()
    assert (subset["max_size"], subset["random_seed"]) == (5, 3)


def test_the_noise_schedules_are_those_of_the_chain():
    assert settings_of(TrainingConfig)["coop_noise_schedule"].choices == SCHEDULES
