"""Pictures of a run: grids of images, and the choice of real ones to show."""

import io
from os import PathLike
from typing import Protocol

import numpy as np
import PIL.Image
import torch

from dnnlib.util import atomic_write
from torch_utils.image_values import pixels
from training.data.damaged_images import LabelledImages, next_whole

# A grid of images is about one 8K screen, but never so many or so few that it tells nothing.
_SCREEN = (7680, 4320)
_COLUMNS = (7, 32)
_ROWS = (4, 32)


def image_grid(images: np.ndarray | torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Lay images [N, C, H, W] out row by row on one picture.

    Args:
        images: Float in [-1, 1] or uint8, one or three channels.
        size: (columns, rows); cells without an image are black.

    Returns:
        uint8 array [rows * H, columns * W, C].

    Raises:
        ValueError: The images are of another shape, or more than the grid has cells.
    """
    cells = pixels(images)
    columns, rows = size
    if cells.ndim != 4 or cells.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {list(cells.shape)}; expected [N, 1 or 3, H, W]")
    count, channels, height, width = cells.shape
    if count > columns * rows:
        raise ValueError(f"{count} images do not fit a grid of {columns} columns and {rows} rows")
    blank = np.zeros((columns * rows - count, channels, height, width), np.uint8)
    cells = np.concatenate([cells, blank]).reshape(rows, columns, channels, height, width)
    return cells.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)


def save_image_grid(
    path: str | PathLike, images: np.ndarray | torch.Tensor, size: tuple[int, int] = (1, 1)
) -> None:
    """Write image_grid(images, size) as a PNG, grey for one channel and RGB for three."""
    grid = image_grid(images, size)
    picture = PIL.Image.fromarray(grid[:, :, 0] if grid.shape[2] == 1 else grid)
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    with atomic_write(path, durable=False) as file:
        file.write(encoded.getbuffer())


def grid_size(height: int, width: int) -> tuple[int, int]:
    """(columns, rows) of a picture of about 7680x4320 pixels made of images of that size."""
    columns = int(np.clip(_SCREEN[0] // width, *_COLUMNS))
    rows = int(np.clip(_SCREEN[1] // height, *_ROWS))
    return columns, rows


class GridImages(LabelledImages, Protocol):
    """What snapshot_grid() needs of a data set."""

    image_shape: list[int]

    @property
    def has_onehot_labels(self) -> bool:
        """Whether labels are in use and are classes."""
        ...

    def get_label(self, index: int) -> np.ndarray:
        """Label of one image, float32 [label_dim]."""
        ...


def snapshot_grid(
    dataset: GridImages, seed: int
) -> tuple[tuple[int, int], np.ndarray, np.ndarray, list[str]]:
    """Choose the real images for `reals.png`, and the labels for the grids of generated ones.

    With class labels each row shows one class, in order of the classes (as many as there are
    rows); otherwise the images are a random choice. Images repeat where there are too few, and a
    damaged one is replaced by the next whole one.

    Args:
        dataset: The images.
        seed: Of the random choice.

    Returns:
        size (columns, rows); images uint8 [columns * rows, C, H, W]; labels float32
        [columns * rows, label_dim]; what is wrong with damaged ones.
    """
    rng = np.random.RandomState(seed)
    _, height, width = dataset.image_shape
    columns, rows = grid_size(height, width)
    if dataset.has_onehot_labels:
        members = _members_of_classes(dataset)[:rows]
        rows = len(members)
        chosen = [np.resize(rng.permutation(indices), columns) for indices in members]
    else:
        chosen = [np.resize(rng.permutation(len(dataset)), columns * rows)]
    items = (next_whole(dataset, int(index)) for index in np.concatenate(chosen))
    images, labels, damage = zip(*items, strict=True)
    return (columns, rows), np.stack(images), np.stack(labels), list(filter(None, damage))


def _members_of_classes(dataset: GridImages) -> list[np.ndarray]:
    """Indices of the images of each class that has any, in order of the classes."""
    classes = np.array([int(dataset.get_label(index).argmax()) for index in range(len(dataset))])
    return [np.flatnonzero(classes == label) for label in np.unique(classes)]
