"""The name of a run: what it was trained on, and with which options."""

from collections.abc import Container
from typing import Any

from training.settings.config import TrainingConfig
from training.settings.setting import NamePart, settings_of
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS


def describe_run(dataset_name: str, config: TrainingConfig, given: Container[str]) -> str:
    """Description of a run, as StyleGAN2-ADA names its folders.

    Args:
        dataset_name: Name of the data set.
        config: Its settings.
        given: Names of the options that the user gave.
    """
    values = vars(config) | {
        "cfg": f"auto{config.gpus}" if config.cfg == "auto" else config.cfg,
        "resume": _snapshot(config.resume),
    }
    named = [
        (declared.in_run_name, name)
        for name, declared in settings_of(type(config)).items()
        if declared.in_run_name is not None
        and _is_named(declared.in_run_name, name in given, values[name])
    ]
    named.sort(key=lambda item: item[0].place)
    return "-".join([dataset_name, *(_text(part, name, values[name]) for part, name in named)])


def name_and_value(name: str, value: Any) -> str:
    """`dscale0.25`, `sn`, `nolazy`: a setting as a part of the name of a run."""
    name = name.replace("_", "")
    if isinstance(value, bool):
        return name if value else f"no{name}"
    return f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"


def _snapshot(resume: str | None) -> str | None:
    return resume if resume is None or resume in OFFICIAL_SNAPSHOTS else "custom"


def _is_named(part: NamePart, given: bool, value: Any) -> bool:
    is_set = value not in (None, False, 0)
    return {"given": given, "set": is_set, "given and set": given and is_set}[part.when]


def _text(part: NamePart, name: str, value: Any) -> str:
    return name_and_value(name, value) if part.text is None else part.text.format(value)
