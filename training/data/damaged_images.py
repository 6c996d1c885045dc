"""Images that turn out damaged while training: left out, named and counted."""

import logging
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch

from training.data.image_files import DatasetError

MAX_SHARE = 0.01  # of the data set; more is another data set than the one asked for
ATTEMPTS = 100  # neighbours that are tried

logger = logging.getLogger(__name__)


class LabelledImages(Protocol):
    """A data set of (image uint8 [C, H, W], label float32 [label_dim])."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]: ...


def next_whole(dataset: LabelledImages, index: int) -> tuple[np.ndarray, np.ndarray, str]:
    """The image of that index or, in its place if it is damaged, the next whole one.

    Returns:
        (image, label, what is wrong with the one of that index: a text, empty if nothing is).

    Raises:
        DatasetError: So are its neighbours.
    """
    damage = ""
    for neighbour in range(index, index + ATTEMPTS):
        try:
            return *dataset[neighbour % len(dataset)], damage
        except DatasetError as error:
            damage = damage or str(error)
    raise DatasetError(damage)


class UndamagedImages(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray, str]]):
    """A data set whose items are what `next_whole` returns."""

    def __init__(self, dataset: LabelledImages) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
        return next_whole(self._dataset, index)


class DamageCount:
    """Names each damaged image once, and ends a run that has too many.

    Args:
        size: Images of the data set.
        quiet: Another process names them.
    """

    def __init__(self, size: int, quiet: bool = False) -> None:
        self._size = size
        self._quiet = quiet
        self.known: list[str] = []  # what was wrong with each

    def add(self, texts: Iterable[str]) -> None:
        """Take what `UndamagedImages` said of images into account.

        Raises:
            DatasetError: More than `MAX_SHARE` of the data set is damaged.
        """
        for text in texts:
            if text in self.known:
                continue
            count = len(self.known) + 1
            if count > MAX_SHARE * self._size:
                raise DatasetError(
                    text
                    if count == 1
                    else f"{count} of {self._size} images are damaged, the latest: {text}"
                )
            self.known.append(text)
            if not self._quiet:
                logger.warning("Warning: an image is left out (%d so far): %s", count, text)
