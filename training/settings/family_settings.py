"""The settings of all families: which class a preset belongs to, and which an option.

The classes are imported when they are asked for: they derive from `TrainingConfig`, which itself
asks for the names of all presets.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from dnnlib import families
from dnnlib.errors import OptionError
from training.settings.setting import flag

DEFAULT_CFG = "auto"


def config_classes() -> dict[str, Any]:
    """The settings class of each family, by the family's name."""
    return {name: families.load(family.settings) for name, family in families.FAMILIES.items()}


def preset_names() -> tuple[str, ...]:
    """All that --cfg may be."""
    return tuple(cfg for family in config_classes().values() for cfg in family.presets())


def config_class(cfg: str) -> Any:
    """The settings class that a preset belongs to.

    Raises:
        OptionError: There is no such preset.
    """
    for family in config_classes().values():
        if cfg in family.presets():
            return family
    raise OptionError(f"--cfg must be one of {', '.join(preset_names())}, not {cfg}")


def family_name(wanted: Any) -> str:
    """Name of the family whose settings are of this class.

    Raises:
        LookupError: Of none.
    """
    for name, family in config_classes().items():
        if family is wanted:
            return name
    raise LookupError(f"{wanted.__name__} holds the settings of no family of networks")


def foreign_options(chosen: Any, cfg: str, options: Iterable[str]) -> dict[str, str]:
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


def _names(family: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(family)}
