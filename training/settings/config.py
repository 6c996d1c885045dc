"""The settings of a run: how they are made, checked, kept and compared, in every family.

A family derives one class from `TrainingConfig`, with settings and presets of its own. Imports no
torch, so that `train.py --help` answers at once.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, get_origin

from dnnlib.errors import OptionError
from training.settings.common import CommonSettings
from training.settings.family_settings import (
    DEFAULT_CFG,
    config_class,
    family_name,
    foreign_options,
)
from training.settings.ranges import value_problems
from training.settings.setting import flag, settings_of
from training.settings.validation import common_contradictions, common_problems, common_remarks

Config = TypeVar("Config", bound="TrainingConfig")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(CommonSettings, ABC):
    """Settings of one training run, complete: presets and defaults are already filled in.

    Make one with `config.make_config()`. `kimg` counts thousands of real images shown.

    Raises:
        OptionError: Lists every setting that is out of range.
    """

    # What a family adds.

    @classmethod
    @abstractmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """What each preset of the family sets, by name; {}: what depends on the data set."""

    @classmethod
    @abstractmethod
    def preset(
        cls, cfg: str, *, resolution: int, gpus: int, batch: int | None = None
    ) -> dict[str, Any]:
        """All values of a preset by the settings' names, for a data set and a number of processes.

        Args:
            cfg: One of `presets()`.
            resolution: Width and height of the images, pixels.
            gpus: Number of processes.
            batch: Total batch that the user asked for; None: the preset's.
        """

    @classmethod
    @abstractmethod
    def own_defaults(cls, given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """What the given options change in the `values` of a preset, by the settings' names."""

    @abstractmethod
    def own_problems(self) -> Iterator[str]:
        """Messages about settings of the family that cannot be together."""

    @classmethod
    @abstractmethod
    def own_contradictions(
        cls, given: Mapping[str, Any], values: Mapping[str, Any]
    ) -> Iterator[str]:
        """As `validation.common_contradictions`, about options of the family."""

    @abstractmethod
    def own_remarks(self, given: Mapping[str, Any]) -> Iterator[str]:
        """As `remarks`, about options of the family."""

    # What all families have.

    @classmethod
    def title(cls) -> str:
        """Name of the family as a headline says it."""
        return cls.__name__.removesuffix("Config")

    def __post_init__(self) -> None:
        """Check everything and report all problems together."""
        problems = [
            problem
            for name, declared in settings_of(type(self)).items()
            for problem in value_problems(declared, getattr(self, name))
        ]
        problems += [*common_problems(self), *self.own_problems()]
        if problems:
            raise OptionError("; ".join(problems))

    @classmethod
    def from_options(cls: type[Config], options: Mapping[str, Any], *, resolution: int) -> Config:
        """As `config.make_config`, where the preset belongs to this family."""
        given = {name: value for name, value in options.items() if value is not None}
        cfg = given.get("cfg", DEFAULT_CFG)
        values = cls.preset(
            cfg,
            resolution=resolution,
            gpus=max(given.get("gpus", 1), 1),  # refused later, together with other problems
            batch=given.get("batch"),
        )
        values |= cls.own_defaults(given, values)
        values["precision"] = default_precision(given)
        foreign = foreign_options(cls, cfg, given)
        given = {name: value for name, value in given.items() if name not in foreign}
        defaults = {f.name: f.default for f in fields(cls)}
        together = (given, defaults | values | given)
        problems = [
            *foreign.values(),
            *common_contradictions(*together),
            *cls.own_contradictions(*together),
        ]
        given.pop("fp32", None)
        complete: dict[str, Any] = {**values, **given, "resolution": resolution}
        try:
            config = cls(**complete)
        except OptionError as error:
            raise OptionError("; ".join([*problems, str(error)])) from None
        if problems:
            raise OptionError("; ".join(problems))
        return config

    def remarks(self, given: Mapping[str, Any]) -> Iterator[str]:
        """What the user may not expect of these settings, which are fine, one text each.

        Args:
            given: Values that the user gave, by the settings' names.
        """
        yield from self.own_remarks(given)
        yield from common_remarks(self)

    @staticmethod
    def images_per_pass(values: Mapping[str, Any], gpus: int, batch: int | None) -> int:
        """`batch_gpu` for a number of processes, and for the batch that a user asked for, if any.

        Args:
            values: A preset's, with batch and batch_gpu, which is the most that it allows.
            gpus: Number of processes.
            batch: Images per iteration that the user asked for; None: the preset's.
        """
        if batch is not None:
            return batch // gpus
        return min(values["batch_gpu"], values["batch"] // gpus)

    def to_json(self) -> str:
        """The settings as an indented JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """As `config.config_from_json`, where the text is of this family."""
        values = json.loads(text)
        for f in fields(cls):
            if get_origin(f.type) is tuple:
                values[f.name] = tuple(values[f.name])
            if f.name in values and not _is_a(values[f.name], f.type):
                raise TypeError(f"{f.name} is {values[f.name]!r}, not {f.type}")
        return cls(**values)

    @property
    def family(self) -> str:
        """Name of the family of networks."""
        return family_name(type(self))

    def differences(self, other: "TrainingConfig") -> list[str]:
        """Texts `--NAME (VALUE there)` of the settings that make `other` another run than this.

        How and where the same images are trained on does not.
        """
        return [
            f"{flag(name)} ({getattr(other, name, 'none')} there)"
            for name, declared in settings_of(type(self)).items()
            if not declared.runtime and self._differs(other, name)
        ]

    def fixed_differences(self, other: "TrainingConfig") -> list[str]:
        """Options of settings with which `other` cannot restore the checkpoint of this run."""
        return [
            flag(name)
            for name, declared in settings_of(type(self)).items()
            if declared.fixed_on_resume and self._differs(other, name)
        ]

    def _differs(self, other: "TrainingConfig", name: str) -> bool:
        return not hasattr(other, name) or getattr(self, name) != getattr(other, name)

    def changed(self: Config, options: Mapping[str, Any]) -> Config:
        """These settings with the `options` that a user gave, by name, in their place.

        Raises:
            OptionError: As `from_options`.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if foreign := foreign_options(type(self), self.cfg, given):
            raise OptionError("; ".join(foreign.values()))
        if given.pop("fp32", False):
            given.setdefault("precision", "fp32")
        values = dataclasses.asdict(self) | given
        batch, gpus = values["batch"], values["gpus"]
        if gpus > 0 and batch % (values["batch_gpu"] * gpus):
            values["batch_gpu"] = batch // gpus
        return dataclasses.replace(self, **values)

    @property
    def learning_rates(self) -> tuple[float, float]:
        """Of G and D in the adversarial stage, before the lazy correction."""
        return self.lr_g or self.lr, self.lr_d or self.lr

    @property
    def coop_learning_rates(self) -> tuple[float, float]:
        """Of G and D in the cooperative stage, before the lazy correction."""
        lr_g, lr_d = self.learning_rates
        return self.coop_lr_g or lr_g, self.coop_lr_d or lr_d

    def training_set_kwargs(self) -> dict[str, Any]:
        """Arguments of the data set as network snapshots carry them (interface of the field)."""
        kwargs: dict[str, Any] = dict(
            class_name="training.dataset.ImageFolderDataset",
            path=self.data,
            use_labels=self.cond,
            max_size=self.subset,
            xflip=self.mirror,
            resolution=self.resolution,
        )
        if self.subset is not None:
            kwargs["random_seed"] = self.seed
        return kwargs


@dataclass(frozen=True, kw_only=True)
class PlainConfig(TrainingConfig):
    """Settings of a family that has no rules of its own: its presets are fixed.

    `PRESETS` are values by the settings' names, by preset.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """As `TrainingConfig.presets`."""
        return cls.PRESETS

    @classmethod
    def preset(
        cls, cfg: str, *, resolution: int, gpus: int, batch: int | None = None
    ) -> dict[str, Any]:
        """As `TrainingConfig.preset`; a forward pass sees all images of a process."""
        values = cls.PRESETS[cfg]
        return values | {"batch_gpu": (values["batch"] if batch is None else batch) // gpus}

    @classmethod
    def own_defaults(cls, given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """None."""
        return {}

    def own_problems(self) -> Iterator[str]:
        """None."""
        yield from ()

    @classmethod
    def own_contradictions(
        cls, given: Mapping[str, Any], values: Mapping[str, Any]
    ) -> Iterator[str]:
        """None."""
        yield from ()

    def own_remarks(self, given: Mapping[str, Any]) -> Iterator[str]:
        """None."""
        yield from ()


def make_config(options: Mapping[str, Any], resolution: int) -> TrainingConfig:
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


def config_from_json(text: str) -> TrainingConfig:
    """The inverse of `TrainingConfig.to_json`.

    Raises:
        OptionError, ValueError, TypeError, KeyError: The text is of something else.
    """
    return config_class(json.loads(text)["cfg"]).from_json(text)


def default_precision(given: Mapping[str, Any]) -> str:
    """`precision` where the user names none; the CPU has no float16 convolutions."""
    return "fp32" if given.get("fp32") or given.get("device", "cpu") == "cpu" else "fp16"


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field; JSON writes 1.0 as it likes."""
    if get_origin(kind) is tuple:
        return all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (isinstance(value, int) and isinstance(1.0, kind))
