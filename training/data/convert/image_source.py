"""What dataset_tool.py reads from: a source is a re-readable stream of labelled images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import PIL.Image

from training.data.labels import Label

LABEL_CHOICES = ("auto", "none", "folders", "coarse")


@dataclass(frozen=True)
class SourceImage:
    """One image of a source.

    Args:
        name: What messages call it.
        label: A class number, a vector or None.
        load: Decodes it; raises what Pillow raises.
    """

    name: str
    label: Label | None
    load: Callable[[], PIL.Image.Image] = field(repr=False)


class ImageSource(ABC):
    """A place where images come from.

    `kind` names the sort of source in the archive's dataset.json; `class_names` are set where
    classes have names; `notes` are remarks that the user should see.

    Args:
        path: What to read.
        labels: One of `label_choices`.

    Raises:
        DatasetError: The data cannot be used.
    """

    kind: str
    default_size: int | None = None
    label_choices: tuple[str, ...] = ("auto", "none")

    def __init__(self, path: str, labels: str = "auto") -> None:
        self.class_names: list[str] | None = None
        self.notes: list[str] = []

    @classmethod
    @abstractmethod
    def matches(cls, path: str) -> bool:
        """Whether this class reads what lies at path."""

    @abstractmethod
    def count(self) -> int | None:
        """The number of images; None: known only after reading."""

    @abstractmethod
    def images(self) -> Iterator[SourceImage]:
        """Yield all images, the same ones in the same order at every call, lazily.

        Raises:
            DatasetError: The container itself turns out to be damaged.
        """
