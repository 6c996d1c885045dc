"""Statistics of data sets on disk, so that every data set is looked at once by every detector."""

import hashlib
import json
import logging
import os
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np

from dnnlib.util import atomic_write, cache_root, first_line
from metrics.features import Collected
from metrics.moments import Moments

_VERSION = 1  # raise it when the same images and detector give other statistics
_MAX_BYTES = 8 << 30  # of rows; more would fill disks unasked

logger = logging.getLogger(__name__)


def cache_file(what: dict[str, Any]) -> Path:
    """The file for statistics.

    Args:
        what: Everything that they depend on, as plain data.
    """
    text = json.dumps(what | {"version": _VERSION}, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_root() / "dataset-statistics" / f"{name}.npz"


def read_cached(path: Path, wanted: Set[str]) -> Collected | None:
    """What an earlier run wrote; None where there is nothing or it is damaged.

    Args:
        path: From `cache_file`.
        wanted: "moments", "rows" or both.
    """
    try:
        # Opened here: np.load() leaves a file open that is no zip.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            # Reading an array checks it against the CRC-32 in the file.
            arrays = {name: archive[name] for name in archive.files}
        return _collected(arrays, wanted)
    except FileNotFoundError:
        return None
    except Exception:  # a damaged file makes NumPy and zipfile raise almost anything
        logger.warning("Cached statistics %s are damaged; making them again", path)
        return None


def _collected(arrays: dict[str, np.ndarray], wanted: Set[str]) -> Collected:
    count, moments, rows = int(arrays["count"]), None, None
    if "moments" in wanted:
        mean, covariance = arrays["mean"], arrays["covariance"]
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError("shapes do not fit")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("not finite")
        moments = Moments(count, mean, covariance)
    if "rows" in wanted:
        rows = arrays["rows"]
        if rows.ndim != 2 or len(rows) != count:
            raise ValueError("shapes do not fit")
        if not np.isfinite(rows).all():
            raise ValueError("not finite")
    return Collected(count, moments, rows)


def write_cached(path: Path, collected: Collected) -> None:
    """Keep statistics for later runs; where that fails a warning is all that happens.

    The file appears whole or not at all. Runs that make the same one at a time replace it by an
    equal one.
    """
    arrays: dict[str, Any] = {"count": collected.count}
    if collected.moments is not None:
        arrays |= {"mean": collected.moments.mean, "covariance": collected.moments.covariance}
    if collected.rows is not None:
        if collected.rows.nbytes > _MAX_BYTES:
            return
        arrays["rows"] = collected.rows
    try:
        os.makedirs(path.parent, exist_ok=True)
        with atomic_write(path, durable=False) as file:
            np.savez(file, **arrays)
    except OSError as error:
        logger.warning("Cannot keep the statistics of the data set: %s", first_line(error))
