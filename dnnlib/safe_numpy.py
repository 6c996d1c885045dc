"""Stand-ins by which pickles may describe NumPy arrays of plain numbers, and nothing else.

Not even NumPy's own reconstructors are called, and no bytes are copied: arrays are read-only views
of what the pickle holds. Pickles of Python 2 and 3 are read; those of Python 2 need the encoding
latin1.
"""

import re
from typing import Any

import numpy as np

from dnnlib.safe_pickle import SafeFunction, SealedType, UnsafePickleError


class PickledDType(metaclass=SealedType):
    """Stands for numpy.dtype: numbers only, no objects, no structures."""

    __slots__ = ("dtype",)

    def __init__(self, code: str | bytes, align: Any = False, copy: Any = True) -> None:
        code = _as_text(code)
        if not re.fullmatch(r"[biuf][1248]", code):
            raise UnsafePickleError(f"numpy.dtype {code[:20]!r} is not a real number type")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = _as_text(state[1])
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("numpy.dtype with an unknown state")
        self.dtype = self.dtype.newbyteorder(order)


class PickledArray(metaclass=SealedType):
    """Stands for numpy.ndarray; `array` is a read-only view of the pickled bytes."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        if 0 in shape:  # such a shape could promise any number of empty rows
            raise UnsafePickleError("numpy.ndarray without elements")
        self.array = _read(dtype, raw).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, *_unused: Any) -> PickledArray:
    if kind is not PickledArray:
        raise UnsafePickleError("numpy.ndarray of a special class")
    return PickledArray()


def _scalar(dtype: Any, raw: Any) -> bool | int | float:
    return _read(dtype, raw)[0].item()


def _read(dtype: Any, raw: Any) -> np.ndarray:
    if not isinstance(dtype, PickledDType):
        raise UnsafePickleError(f"numpy data with a {type(dtype).__name__} as its dtype")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # str: written by Python 2
    if not isinstance(raw, bytes):
        raise UnsafePickleError(f"numpy data is a {type(raw).__name__}, not bytes")
    return np.frombuffer(raw, dtype.dtype)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """`_codecs.encode`, by which protocol 2 of Python 3 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafePickleError("_codecs.encode is only accepted for latin1")
    return text.encode("latin1")


def _as_text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


NUMPY_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): PickledDType,
    ("numpy", "ndarray"): PickledArray,
    ("_codecs", "encode"): SafeFunction(_encode),
}
for _package in ("numpy.core", "numpy._core"):
    NUMPY_NAMES[f"{_package}.multiarray", "scalar"] = SafeFunction(_scalar)
    NUMPY_NAMES[f"{_package}.multiarray", "_reconstruct"] = SafeFunction(_reconstruct)
