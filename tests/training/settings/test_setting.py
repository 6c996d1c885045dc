"""A setting is declared in one line; everything else follows from that."""

import runpy
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from dnnlib import families
from dnnlib.command import SectionedCommand
from dnnlib.errors import OptionError
from models.stylegan2.settings import StyleGAN2Config
from training.settings.config import TrainingConfig, config_from_json, make_config
from training.settings.family_settings import config_class, family_name, preset_names
from training.settings.options import option_sections
from training.settings.run_name import describe_run
from training.settings.setting import NamePart, setting, settings_of

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class TrialConfig(StyleGAN2Config):
    warmth: float = setting(
        "how warm images are", 0.5, least=0, most=1, in_run_name=NamePart(), fixed_on_resume=True
    )
    tint: str | None = setting("their colour", None, choices=("red", "blue"), runtime=True)

    @classmethod
    def presets(cls):
        return {"trial": super().presets()["digits"] | {"warmth": 0.25}}

    @classmethod
    def preset(cls, cfg, **kwargs):
        return super().preset("digits", **kwargs) | {"warmth": 0.25}


@dataclass(frozen=True, kw_only=True)
class OtherConfig(StyleGAN2Config):
    tint: str | None = setting("their colour", None, choices=("blue", "green"))

    @classmethod
    def presets(cls):
        return {"other": {}}


@dataclass(frozen=True, kw_only=True)
class OddConfig(OtherConfig):
    tint: int = setting("another type", 0)


def register(monkeypatch, name, config):
    family = families.FAMILIES["stylegan2"]._replace(settings=f"{__name__}:{config.__name__}")
    monkeypatch.setitem(families.FAMILIES, name, family)


@pytest.fixture
def trial(monkeypatch):
    register(monkeypatch, "trial", TrialConfig)


def make(**options):
    small = dict(data="tiny.zip", batch=8)
    return make_config(small | options, 8)


def command():
    return SectionedCommand("train", sections=option_sections({}))


def option_named(name):
    [option] = [option for option in command().params if option.name == name]
    return option


def test_the_option(trial):
    assert [option.name for option in command().sections["Trial (--cfg=trial)"]] == [
        "warmth",
        "tint",
    ]
    option = option_named("warmth")
    assert option.opts == ["--warmth"] and option.type is click.FLOAT
    assert option.help == "How warm images are  [default: 0.5]"
    with command().make_context("train", ["--warmth=0.75", "--tint=red"]) as context:
        given = {name: value for name, value in context.params.items() if value is not None}
    assert given == dict(warmth=0.75, tint="red")
    with pytest.raises(click.BadParameter):
        command().make_context("train", ["--tint=green"])


def test_the_preset_and_its_class(trial):
    assert config_class("trial") is TrialConfig and preset_names()[-1] == "trial"
    assert (make(cfg="trial").warmth, make(cfg="trial", warmth=0.75).warmth) == (0.25, 0.75)
    assert make(cfg="trial").family == "trial" and make(cfg="digits").family == "stylegan2"
    with pytest.raises(OptionError, match="--cfg must be one of auto, .*, trial, not nonsense"):
        make(cfg="nonsense")
    with pytest.raises(LookupError):
        family_name(OtherConfig)


def test_the_range(trial):
    with pytest.raises(OptionError) as caught:
        make(cfg="trial", warmth=2.0, tint="green", gamma=-1.0)
    assert str(caught.value) == (
        "--gamma must be at least 0, not -1.0; --warmth must be from 0 to 1, not 2.0; "
        "--tint must be one of red, blue, not green"
    )


def test_the_name_of_the_run(trial):
    options = dict(cfg="trial", warmth=0.75, tint="red", coop_kimg=1, coop_steps=2)
    name = describe_run("faces", make(**options), options)
    assert name == "faces-trial-coop1-warmth0.75-coopsteps2"


def test_what_a_resume_may_change(trial):
    before = make(cfg="trial")
    assert config_from_json(before.to_json()) == before
    assert before.fixed_differences(before.changed(dict(warmth=0.75))) == ["--warmth"]
    assert before.fixed_differences(before.changed(dict(tint="red"))) == []
    assert before.differences(before.changed(dict(tint="red"))) == []
    assert before.differences(before.changed(dict(warmth=0.75))) == ["--warmth (0.75 there)"]
    assert "--warmth (none there)" in before.differences(make(cfg="digits"))
    assert "--cfg" in before.fixed_differences(make(cfg="digits"))


def test_the_generated_document(trial):
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    row = page["options_table"](command(), [option_named("warmth")]).splitlines()[-1]
    assert row == "| `--warmth FLOAT` | 0.5 | How warm images are |"
    rows = page["presets_table"](TrialConfig).splitlines()
    assert rows[0] == "| setting | `trial` | meaning |"
    assert "| `warmth` | 0.25 | how warm images are |" in rows


def test_options_of_another_family_are_refused(trial):
    with pytest.raises(OptionError) as caught:
        make(cfg="digits", warmth=0.75, kimg=0)
    assert str(caught.value) == (
        "--warmth is an option of trial (--cfg=trial), not of stylegan2 (--cfg=digits); "
        "--kimg must be at least 1, not 0"
    )
    with pytest.raises(OptionError, match="^--tint is an option of trial .* not of stylegan2"):
        make(cfg="digits").changed(dict(tint="red"))


def test_an_option_of_two_families_is_one(trial, monkeypatch):
    register(monkeypatch, "other", OtherConfig)
    option = option_named("tint")
    assert tuple(option.type.choices) == ("red", "blue", "green")
    assert option.help == "Their colour (also of other)"
    with pytest.raises(OptionError, match="--tint must be one of blue, green, not red"):
        OtherConfig.from_options(dict(data="x", cfg="auto", tint="red"), resolution=8)
    message = r"--tint is an option of trial \(--cfg=trial\) and other \(--cfg=other\), not of"
    with pytest.raises(OptionError, match=message):
        make(cfg="digits", tint="red")


def test_an_option_has_one_type(trial, monkeypatch):
    register(monkeypatch, "odd", OddConfig)
    with pytest.raises(TypeError, match="--tint has another type in each of trial, odd"):
        option_sections({})


def test_what_is_the_same_for_all_families_is_theirs():
    with pytest.raises(TypeError, match="abstract"):
        TrainingConfig(data="x")
    assert all(declared.doc for declared in settings_of(StyleGAN2Config).values())
    sections = {declared.section for declared in settings_of(TrainingConfig).values()}
    own = settings_of(StyleGAN2Config).keys() - settings_of(TrainingConfig).keys()
    assert "" in sections, "resolution is no option"
    assert all(
        declared.section for declared in settings_of(TrainingConfig).values() if declared.option
    )
    assert not any(settings_of(StyleGAN2Config)[name].section for name in own)
