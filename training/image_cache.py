"""Decoded images in one memory-mapped file, shared by workers, processes and runs.

Decoding PNGs takes most of the time that loading small images takes. The file is named by what the
data set holds, so that other data, or a repaired image, never meet an old one.
"""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dnnlib.util import atomic_write
from training.dataset import DatasetError

MAX_RESOLUTION = 64  # larger images are read fast enough beside the networks that need them
MAX_BYTES = 1 << 34

logger = logging.getLogger(__name__)


def cache_folder():
    """Where decoded images are kept: below ``$DNNLIB_CACHE_DIR`` or ``~/.cache/dnnlib``."""
    root = os.environ.get("DNNLIB_CACHE_DIR") or Path.home() / ".cache" / "dnnlib"
    return Path(root).expanduser() / "images"


def cache_images(dataset, folder=None):
    """Let a data set read from the file of its decoded images, which is made where it is missing.

    Args:
        dataset: An `ImageFolderDataset`, changed in place.
        folder: Where the file is kept; None: `cache_folder()`.

    Raises:
        DatasetError: The images are too large for it, or one of them is damaged.
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
    path = (cache_folder() if folder is None else Path(folder)) / f"{key.hexdigest()[:32]}.npy"
    if not path.exists():
        logger.info("Decoding %d images into %s", dataset.num_files, path)
        _write(path, dataset)
    dataset.use_decoded(np.load(path, mmap_mode="r"))


def _write(path, dataset):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (dataset.num_files, *dataset.image_shape)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for index in tqdm(range(dataset.num_files), unit="images", leave=False, disable=None):
            file.write(dataset.decode_file(index).tobytes())
