"""The settings as options of a command line: one click option each, in sections."""

from collections.abc import Callable, Mapping
from typing import Any

import click

from training.settings.common import SECTIONS
from training.settings.config import TrainingConfig
from training.settings.family_settings import config_classes
from training.settings.setting import Setting, flag, settings_of


class NumberOrWord(click.ParamType):
    """A number, or one of some words."""

    name = "number"

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """Convert the text of the command line."""
        if value in self.words:
            return value
        try:
            return float(value)
        except ValueError:
            words = " nor ".join(map(repr, self.words))
            self.fail(f"{value!r} is neither a number nor {words}.", param, ctx)


class Words(click.ParamType):
    """A comma-separated list, as a tuple."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Convert the text of the command line."""
        if isinstance(value, tuple):
            return value
        return tuple(word.strip() for word in value.split(",") if word.strip())


def option_sections(others: Mapping[str, list[click.Option]]) -> dict[str, list[click.Option]]:
    """All options of train.py by section: those that all families share, then a section per family.

    Args:
        others: Options that are no settings, by the title of the section that they stand in.
    """
    common = settings_of(TrainingConfig)
    sections = {title: list(others.get(title, ())) for title in SECTIONS}
    for declared in common.values():
        if declared.option:
            sections[declared.section].append(_option(declared))
    own = {name: _own_settings(family) for name, family in config_classes().items()}
    shown: set[str] = set(common)
    for name, family in config_classes().items():
        title = f"{family.title()} (--cfg={', '.join(family.presets())})"
        fresh = [declared for declared in own[name].values() if declared.name not in shown]
        sections[title] = [_option(_of_all(declared, own)) for declared in fresh]
        shown |= {declared.name for declared in fresh}
    return sections


def _own_settings(family: type) -> dict[str, Setting]:
    """The settings that a family's options are made of, by name."""
    return {name: declared for name, declared in settings_of(family).items() if declared.option}


def _of_all(declared: Setting, own: Mapping[str, Mapping[str, Setting]]) -> Setting:
    """A setting of a family as one option of all families that declare it, each with its choices.

    Raises:
        TypeError: They do not agree about its type.
    """
    name = declared.name
    same = {family: settings[name] for family, settings in own.items() if name in settings}
    if len({other.kinds for other in same.values()}) > 1:
        raise TypeError(f"{flag(name)} has another type in each of {', '.join(same)}")
    choices = dict.fromkeys(word for other in same.values() for word in other.choices)
    _, *others = same
    also = f" (also of {', '.join(others)})" if others else ""
    return declared._replace(choices=tuple(choices), doc=declared.doc + also)


def _option(declared: Setting) -> click.Option:
    """The option of a setting; its range is checked later, together with all others."""
    kind, metavar = _type(declared)
    default = declared.shown_default
    shown = f"  [default: {default}]" if default else ""
    return click.Option(
        [flag(declared.name)],
        type=kind,
        metavar=declared.metavar or metavar,
        help=declared.doc[0].upper() + declared.doc[1:] + shown,
        callback=None if declared.word_for_none is None else _without(declared.word_for_none),
    )


def _type(declared: Setting) -> tuple[click.ParamType | type, str | None]:
    """Type of an option, and what stands for its value where click's own word would say less."""
    kinds, choices = declared.kinds, declared.choices
    if kinds == (float, str):
        return NumberOrWord(choices), "|".join(("FLOAT", *choices))
    if kinds == (tuple,):
        return Words(), "LIST"
    if choices:
        return click.Choice(choices), None
    return kinds[0], "BOOL" if kinds == (bool,) else None


def _without(word: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback for which `word` means that the option is not given."""
    return lambda ctx, param, value: None if value == word else value
