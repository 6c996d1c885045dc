"""The settings of all families: which class a preset belongs to, and which an option.

The classes are imported when they are asked for: they derive from `TrainingConfig`, which itself
asks for the names of all presets.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import models
from dnnlib.errors import OptionError
from training.settings.setting import flag

if TYPE_CHECKING:
    from training.settings.config import TrainingConfig

DEFAULT_CFG = "auto"


def config_classes() -> dict[str, type["TrainingConfig"]]:
    """The settings class of each family, by the family's name."""
    return {name: models.load(family.settings) for name, family in models.FAMILIES.items()}


def preset_names() -> tuple[str, ...]:
    """All that --cfg may be."""
    return tuple(cfg for family in config_classes().values() for cfg in family.presets())


def config_class(cfg: str) -> type["TrainingConfig"]:
    """The settings class that a preset belongs to.

    Raises:
        OptionError: There is no such preset.
    """
    for family in config_classes().values():
        if cfg in family.presets():
            return family
    raise OptionError(f"--cfg must be one of {', '.join(preset_names())}, not {cfg}")


def family_name(wanted: type["TrainingConfig"]) -> str:
    """Name of the family whose settings are of this class.

    Raises:
        LookupError: Of none.
    """
    for name, family in config_classes().items():
        if family is wanted:
            return name
    raise LookupError(f"{wanted.__name__} holds the settings of no family of networks")


def make_config(options: Mapping[str, Any], resolution: int) -> "TrainingConfig":
    """Complete settings from the options that a user gave; their class follows from the preset.

    Args:
        options: Values by name; None means not given. `fp32=True` is the official name of
            `precision="fp32"`.
        resolution: Of the data set, pixels.

    Raises:
        OptionError: Lists every setting that is out of range and every contradiction.
    """
    family = config_class(options.get("cfg") or DEFAULT_CFG)
    return family.from_options(options, resolution=resolution)


def config_from_json(text: str) -> "TrainingConfig":
    """The inverse of `TrainingConfig.to_json`.

    Raises:
        OptionError, ValueError, TypeError, KeyError: The text is of something else.
    """
    return config_class(json.loads(text)["cfg"]).from_json(text)


def foreign_options(
    chosen: type["TrainingConfig"], cfg: str, options: Iterable[str]
) -> dict[str, str]:
    """Messages about options of other families than the chosen one, by the option's name.

    Args:
        chosen: Settings class of the family.
        cfg: The preset that chose it.
        options: Names of the options that a user gave.
    """
    own = _names(chosen)
    messages = {}
    for option in options:
        owners = [
            f"{name} (--cfg={', '.join(family.presets())})"
            for name, family in config_classes().items()
            if option not in own and option in _names(family)
        ]
        if owners:
            messages[option] = (
                f"{flag(option)} is an option of {' and '.join(owners)}, not of "
                f"{family_name(chosen)} (--cfg={cfg})"
            )
    return messages


def _names(family: type["TrainingConfig"]) -> set[str]:
    return {field.name for field in dataclasses.fields(family)}
