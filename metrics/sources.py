"""Image files to measure: a folder or zip of any images of one size, or saved features."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.hashing import file_sha256
from dnnlib.util import first_line
from metrics import MetricError
from metrics.features import FeatureFn, require_finite
from training.data.convert.image_transforms import to_grey_or_rgb
from training.data.dataset_json import read_labels, read_meta
from training.data.image_files import (
    DatasetError,
    image_names,
    open_image,
    open_store,
    read_image_header,
)
from training.data.labels import label_array
from training.dataset import subset_indices

_DECODERS = 4  # threads; Pillow lets others run while it decodes


class View(NamedTuple):
    """Which images of the files, and whether those that follow are their mirror images."""

    indices: np.ndarray
    flipped: bool = False


class ImageFiles:
    """The images of a folder or zip, in the order of their names.

    Grey images have one channel, RGB images three; where both occur all have three. An alpha
    channel is dropped, as dataset_tool.py does. Images must be of one size, which need not be
    square.

    Args:
        path: The folder or zip.
        max_size: Number of images that training used; None: all.
        xflip: Whether training used their mirrored copies, too.
        random_seed: Chose those that training used.

    Raises:
        MetricError: They cannot be measured.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        max_size: int | None = None,
        xflip: bool = False,
        random_seed: int = 0,
    ) -> None:
        self.path = os.fspath(path)
        try:
            self._store = open_store(path)
            self._names = image_names(self._store)
            self._meta = read_meta(self._store)
        except DatasetError as error:
            raise MetricError(first_line(error).rstrip(".")) from None
        if not self._names:
            raise MetricError(f"'{self.path}' holds no images")
        self.size = self._common_size()
        try:
            chosen = subset_indices(len(self._names), max_size, random_seed)
        except DatasetError as error:
            raise MetricError(first_line(error).rstrip(".")) from None
        self._whole = View(np.arange(len(self._names)))
        self._training = View(chosen, xflip)
        self._labels: np.ndarray | None = None

    def view(self, full: bool) -> View:
        """All images, or those that training used."""
        return self._whole if full else self._training

    @property
    def resampling(self) -> str | None:
        """The filter by which dataset_tool.py resized the images, "none", or None: unknown."""
        if not isinstance(self._meta.get("resize_filter"), str):
            return None
        original = self._meta.get("original_size")
        same = {"width": [self.size[0]] * 2, "height": [self.size[1]] * 2}
        return "none" if original == same else self._meta["resize_filter"]

    def labels(self, full: bool) -> np.ndarray:
        """Labels of a view: class numbers int64 [N], vectors float32 [N, D].

        Args:
            full: Whether of all images, as for `view`.

        Raises:
            MetricError: An image has none.
        """
        if self._labels is None:
            self._labels = self._read_labels()
        view = self.view(full)
        rows = self._labels[view.indices]
        return np.concatenate([rows, rows]) if view.flipped else rows

    def _read_labels(self) -> np.ndarray:
        try:
            labels = read_labels(self._store) or {}
        except DatasetError as error:
            raise MetricError(first_line(error).rstrip(".")) from None
        if any(name not in labels for name in self._names):
            raise MetricError(f"'{self.path}' lacks labels in dataset.json, which are needed here")
        return label_array(labels, self._names)

    def digest(self) -> str:
        """SHA-256 of names and contents of all images, 64 hexadecimal digits.

        A zip's directory holds the CRC-32 of every file, so that it need not be read whole.
        """
        found = hashlib.sha256()
        for name in self._names:
            found.update(f"{name}\0{self._store.fingerprint(name)}\n".encode())
        return found.hexdigest()

    def producer(self, feature_fns: Sequence[FeatureFn], view: View) -> "FileFeatures":
        """Features of the images of a view."""
        return FileFeatures(self, feature_fns, view)

    def decode(self, index: int, flipped: bool = False) -> np.ndarray:
        """One image, uint8 [C, H, W] with C 1 or 3.

        Args:
            index: Its place in the order of names.
            flipped: Whether to mirror it.

        Raises:
            MetricError: It cannot be read; its name is told.
        """
        name = self._names[index]
        try:
            with open_image(self._store, name) as opened:
                image = to_grey_or_rgb(opened)
                pixels = np.asarray(image)
        except Exception as error:  # a decoder can raise anything on damaged data
            raise MetricError(
                f"image {index} ('{name}' in '{self.path}') cannot be read: {first_line(error)}"
            ) from None
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if pixels.shape[:0:-1] != self.size:
            raise MetricError(f"image {index} ('{name}' in '{self.path}') has changed its size")
        return pixels[:, :, ::-1] if flipped else pixels

    def _common_size(self) -> tuple[int, int]:
        """(width, height) of all images."""
        sizes: Counter[tuple[int, int]] = Counter()
        for index, name in enumerate(self._names):
            try:
                header = read_image_header(self._store, name)
            except Exception as error:  # a parser can raise anything on damaged data
                raise MetricError(
                    f"image {index} ('{name}' in '{self.path}') cannot be read: {first_line(error)}"
                ) from None
            sizes[header.width, header.height] += 1
        if len(sizes) > 1:
            (most, _), (other, _) = sizes.most_common(2)
            raise MetricError(
                f"'{self.path}' mixes sizes ({most[0]}x{most[1]}, {other[0]}x{other[1]}), and how "
                "they are resized changes results: bring them to one by dataset_tool.py"
            )
        return next(iter(sizes))


class FileFeatures:
    """What detectors say about image files; a `metrics.features.Producer`."""

    def __init__(self, files: ImageFiles, feature_fns: Sequence[FeatureFn], view: View) -> None:
        self._files, self._feature_fns, self._view = files, feature_fns, view
        self._pool = ThreadPoolExecutor(_DECODERS)
        self._waiting: dict[int, Future] = {}

    def __len__(self) -> int:
        return len(self._view.indices) * (2 if self._view.flipped else 1)

    def prepare(self, start: int, stop: int) -> None:
        """Begin to decode these images."""
        for place in range(start, stop):
            if place not in self._waiting:
                turn, index = divmod(place, len(self._view.indices))
                self._waiting[place] = self._pool.submit(
                    self._files.decode, int(self._view.indices[index]), turn > 0
                )

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """Features [stop - start, D] by every function."""
        self.prepare(start, stop)
        images = [self._waiting.pop(place).result() for place in range(start, stop)]
        channels = max(len(image) for image in images)
        images = [np.broadcast_to(image, (channels, *image.shape[1:])) for image in images]
        stacked = torch.from_numpy(np.stack(images))
        return [feature_fn(stacked, start=start) for feature_fn in self._feature_fns]


class FeatureFile:
    """Saved features: a .npz file with an array `features` [N, D] of real numbers.

    `rows` are float32 [N, D], `sha256` is the file's.

    Raises:
        MetricError: It cannot be used.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        features = _read_features(self.path)
        if features.ndim != 2 or features.dtype.kind not in "fiu" or 0 in features.shape:
            raise MetricError(
                f"'{path}' has features of shape {list(features.shape)} and type {features.dtype}; "
                "real numbers [N, D] are needed"
            )
        with np.errstate(over="ignore"):  # infinity is refused below
            self.rows = features.astype(np.float32)
        require_finite(self.rows, 0, f"'{path}': feature vector")
        self.sha256 = file_sha256(Path(path))


def _read_features(path: str) -> np.ndarray:
    try:
        # Opened here: np.load() leaves a file open that is no zip.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if "features" in archive.files:
                return archive["features"]
    except Exception as error:  # whatever a damaged file makes NumPy and zipfile raise
        raise MetricError(f"'{path}' is no readable .npz file: {first_line(error)}") from None
    raise MetricError(
        f"'{path}' has no array called features; make it with numpy.savez(FILE, features=ARRAY)"
    )
