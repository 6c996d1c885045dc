"""Reading the pickled batches in which CIFAR and downsampled ImageNet are published.

No class or function of a pickle is ever called, not even NumPy's: its reconstructors are replaced
by the small stand-ins below, which accept plain numbers in plain arrays and nothing else.
"""

import pickle
import re
from typing import IO, Any

import numpy as np

from dnnlib.safe_pickle import RestrictedUnpickler, UnsafePickleError
from training.image_files import DatasetError, first_line


def load_pickled_batch(stream: IO[bytes], name: str) -> dict[str, Any]:
    """Unpickle one batch, a dict by string keys; its arrays are read-only NumPy arrays.

    Pickles of Python 2 and 3 are read. Raises DatasetError naming the batch where it is damaged,
    is no dict, or asks for anything but arrays and plain containers.
    """
    try:
        content = RestrictedUnpickler(stream, _ALLOWED, encoding="latin1").load()
    except UnsafePickleError as error:
        raise DatasetError(f"'{name}' is refused, it is no plain data: {first_line(error)}") from (
            error
        )
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DatasetError(f"'{name}' is no readable pickle ({reason}).") from error
    if not isinstance(content, dict):
        raise DatasetError(f"'{name}' holds a {type(content).__name__}, not a dict of arrays.")
    return {_as_text(key): _unwrap(value) for key, value in content.items()}


class _PickledDtype:
    """Stands in for numpy.dtype: numbers only, no objects, no structures."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        code = _as_text(code)
        if not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(f"array of '{code}'")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = _as_text(state[1])
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("array of structures")
        self.dtype = self.dtype.newbyteorder(order)


class _PickledArray:
    """Stands in for numpy.ndarray and takes its state without a copy of the bytes."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # str: written by Python 2
        flat = np.frombuffer(raw, dtype.dtype)
        self.array = flat.reshape(shape, order="F" if fortran_order else "C")


def _reconstruct(kind: type, shape: tuple, code: str | bytes) -> _PickledArray:
    """Stand in for NumPy's function of that name: an empty array that awaits its state."""
    if kind is not _PickledArray:
        raise pickle.UnpicklingError("array subclass")
    return _PickledArray()


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for _codecs.encode, by which protocol 2 of Python 3 writes bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding '{encoding}'")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode_latin1,
}


def _as_text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _unwrap(value: object) -> object:
    return value.array if isinstance(value, _PickledArray) else value
