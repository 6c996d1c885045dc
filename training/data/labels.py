"""Labels of images: classes or vectors, one by one or as an array. Imports no torch."""

from collections.abc import Iterable, Mapping

import numpy as np

Label = int | list[float]
"""A class number, or a vector of any length from 1."""

MAX_CLASSES = 1_000_000  # a larger integer label is a mistake, and its one-hot row would not fit


def label_array(labels: Mapping[str, Label], names: Iterable[str]) -> np.ndarray:
    """The labels of all names in their order: classes int64 [N], vectors float32 [N, D].

    Args:
        labels: By name, all of one kind.
        names: At least one; each has a label.
    """
    rows = [labels[name] for name in names]
    return np.array(rows, np.int64 if isinstance(rows[0], int) else np.float32)


def one_hot(classes: np.ndarray | int, num_classes: int) -> np.ndarray:
    """float32 [..., num_classes] of class numbers [...]: 1 at the class and 0 elsewhere."""
    return (np.asarray(classes)[..., None] == np.arange(num_classes)).astype(np.float32)
