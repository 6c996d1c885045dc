"""How a setting is declared: in one line, from which everything that is known of it follows.

That is its option and help text (`options.py`), the check of its range (`ranges.py`), its part of
the name of a run (`run_name.py`), what a resume may change (`config.py`) and docs/options.md.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin

KEY = "setting"  # of a field's metadata


class NamePart(NamedTuple):
    """How a setting stands in the name of a run.

    Attributes:
        place: Parts are sorted by it, then as they are declared. 1 to 13 are the official order.
        text: "{}" stands for the value; None: name and value, as `run_name.name_and_value`.
        when: "given": where the user gave it; "set": where it is not None, False or 0.
    """

    place: int = 30
    text: str | None = None
    when: Literal["given", "set", "given and set"] = "given"


class Setting(NamedTuple):
    """What is known of a setting; `setting()` describes the attributes."""

    name: str
    annotation: Any
    default: Any  # or dataclasses.MISSING
    doc: str
    option: bool
    section: str
    metavar: str | None
    least: float | None
    above: float | None
    most: float | None
    choices: tuple[str, ...]
    when_none: str
    unless_given: str
    word_for_none: str | None
    in_run_name: NamePart | None
    runtime: bool
    fixed_on_resume: bool

    @property
    def kinds(self) -> tuple[type, ...]:
        """The types that a value may have; `tuple` for several words; without None."""
        kinds = (
            get_args(self.annotation)
            if isinstance(self.annotation, UnionType)
            else (self.annotation,)
        )
        return tuple(get_origin(kind) or kind for kind in kinds if kind is not type(None))

    @property
    def meaning(self) -> str:
        """What it is, and what None means."""
        return f"{self.doc}; None: {self.when_none}" if self.when_none else self.doc

    @property
    def shown_default(self) -> str:
        """What holds where the option is not given, in words; "": nothing."""
        if self.unless_given:
            return self.unless_given
        if self.default is MISSING:
            return "from --cfg"
        return self.when_none if self.default in (None, ()) else str(self.default)


def setting(
    doc: str,
    default: Any = MISSING,
    *,
    option: bool = True,
    section: str = "",
    metavar: str | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    when_none: str = "",
    unless_given: str = "",
    word_for_none: str | None = None,
    in_run_name: NamePart | None = None,
    runtime: bool = False,
    fixed_on_resume: bool = False,
) -> Any:
    """A field of a settings class. The type of its option comes from its annotation.

    Args:
        doc: What it is: one line, which begins small.
        default: Its value where neither the user nor a preset sets it.
        option: It is an option of train.py; else presets or other options set it.
        section: Title in the help text; "" in a family: that of the family.
        metavar: What stands for the value in the help text.
        least: Lowest value.
        above: The value is higher than this.
        most: Highest value.
        choices: The words that are allowed, or a function that returns them. Beside a number
            (`float | str`) they are the words that may stand in its place; of several words
            (`tuple[str, ...]`) each must be one of them.
        when_none: What None means, in words.
        unless_given: What holds where the option is not given, in words, where that is neither the
            default nor the preset's value.
        word_for_none: A word of the command line that means that the option is not given.
        in_run_name: How the name of a run says it.
        runtime: With another value the run is still the same one.
        fixed_on_resume: With another value a checkpoint does not fit, or means something else.
    """
    facts = dict(locals())  # the arguments: the attributes of `Setting`
    del facts["default"]
    return dataclasses.field(default=default, metadata={KEY: facts})


def flag(name: str) -> str:
    """The command-line option of a setting."""
    return f"--{name.replace('_', '-')}"


def settings_of(config_class: type) -> dict[str, Setting]:
    """All settings of a settings class by name, as they are declared."""
    return {field.name: _of_field(field) for field in dataclasses.fields(config_class)}


def _of_field(field: dataclasses.Field) -> Setting:
    facts: dict[str, Any] = dict(field.metadata[KEY])
    if callable(facts["choices"]):
        facts["choices"] = facts["choices"]()
    return Setting(name=field.name, annotation=field.type, default=field.default, **facts)
