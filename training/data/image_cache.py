"""Decoded images in one memory-mapped file, shared by workers, processes and runs.

Decoding PNGs takes most of the time that loading small images takes. The file is named by what the
data set holds, so that other data, or a repaired image, never meet an old one.
"""

import hashlib
import logging
import os
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from dnnlib.util import atomic_write, cache_root, first_line
from training.data.image_files import DatasetError

MAX_RESOLUTION = 64  # larger images are read fast enough beside the networks that need them
MAX_BYTES = 1 << 34

logger = logging.getLogger(__name__)


class DecodedImages:
    """The images of a data set in a file: a .npy of records (checksum, pixels).

    The checksum is of the pixels and of the file's name, so that an image of another data set is
    none of this one. Picklable: the path is sent to data-loader workers, not what the file holds.

    Args:
        path: The file.
        count: Images that it must hold.
        image_shape: Their [C, H, W].

    Raises:
        ValueError, OSError: It is another file, or cannot be read.
    """

    def __init__(self, path: Path, count: int, image_shape: list[int]) -> None:
        self._made_of = (path, count, image_shape)
        self._start = _start_of_checksums(path)
        if not path.is_file():  # opening a pipe would block
            raise ValueError("no regular file")
        records = np.lib.format.open_memmap(path, mode="r")
        if (records.dtype, records.shape) != (_record_type(image_shape), (count,)):
            raise ValueError(f"{records.dtype} of shape {records.shape}")
        self._checksums, self._pixels = records["checksum"], records["pixels"]

    def __reduce__(self) -> tuple:
        return DecodedImages, self._made_of

    def read(self, number: int) -> np.ndarray | None:
        """A copy of one image, uint8 [C, H, W]; None where the file holds no whole one."""
        image = np.array(self._pixels[number])
        whole = zlib.crc32(image.data, self._start) == self._checksums[number]
        return image if whole else None


class CachedImages(Protocol):
    """What is asked of a data set whose decoded images are kept: an `ImageFolderDataset`."""

    image_shape: list[int]

    @property
    def num_files(self) -> int:
        """Images of the archive."""
        ...

    def content_signature(self) -> str:
        """A text that differs for any other content of the archive."""
        ...

    def decode_file(self, number: int) -> np.ndarray:
        """Image `number` of the archive, uint8 [C, H, W]."""
        ...

    def use_decoded(self, decoded: DecodedImages) -> None:
        """Take images from there from now on."""


def cache_images(dataset: CachedImages, folder: str | os.PathLike | None = None) -> None:
    """Let a data set read from the file of its decoded images, which is made where it is missing.

    A damaged image stays damaged: the data set raises its error whenever it is read.

    Args:
        dataset: The data set, changed in place.
        folder: Where the file is kept; None: "images" below `cache_root()`.

    Raises:
        DatasetError: The images are too large for it.
        OSError: The file cannot be written.
    """
    channels, resolution, _ = dataset.image_shape
    size = dataset.num_files * channels * resolution**2
    if resolution > MAX_RESOLUTION or size > MAX_BYTES:
        raise DatasetError(
            f"--cache is for images up to {MAX_RESOLUTION}x{MAX_RESOLUTION} and "
            f"{MAX_BYTES >> 30} GB in all: leave it out."
        )
    key = hashlib.sha256(f"{dataset.content_signature()} {dataset.image_shape}".encode())
    folder = cache_root() / "images" if folder is None else Path(folder)
    path = folder / f"{key.hexdigest()[:32]}.npy"
    decoded = _open(path, dataset)
    if decoded is None:
        _write(path, dataset)
        decoded = DecodedImages(path, dataset.num_files, dataset.image_shape)
    dataset.use_decoded(decoded)


def _open(path: Path, dataset: CachedImages) -> DecodedImages | None:
    """The decoded images that an earlier run wrote; None where there are none."""
    try:
        return DecodedImages(path, dataset.num_files, dataset.image_shape)
    except Exception as error:  # NumPy's reader can raise anything on a damaged file
        if path.exists() or path.is_symlink():
            logger.warning(
                "Warning: %s does not hold the decoded images (%s); making it again.",
                path,
                first_line(error),
            )
    return None


def _write(path: Path, dataset: CachedImages) -> None:
    logger.info("Decoding %d images into %s", dataset.num_files, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, start = _record_type(dataset.image_shape), _start_of_checksums(path)
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype))
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (dataset.num_files,)})
        for index in tqdm(range(dataset.num_files), unit="images", leave=False, disable=None):
            file.write(_record(dataset, index, dtype, start).tobytes())


def _record(dataset: CachedImages, index: int, dtype: np.dtype, start: int) -> np.ndarray:
    """One image and its checksum; of a damaged one zeros, and what is not their checksum."""
    record = np.zeros((), dtype)
    try:
        record["pixels"] = dataset.decode_file(index)
        damaged = False
    except DatasetError:
        damaged = True
    record["checksum"] = zlib.crc32(record["pixels"].data, start) ^ damaged
    return record


def _start_of_checksums(path: Path) -> int:
    return zlib.crc32(path.name.encode())


def _record_type(image_shape: list[int]) -> np.dtype:
    return np.dtype([("checksum", "<u4"), ("pixels", "u1", tuple(image_shape))])
