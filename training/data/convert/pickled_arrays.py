"""Reading the pickled batches in which CIFAR and downsampled ImageNet are published."""

from typing import IO, Any

from dnnlib.safe_numpy import NUMPY_NAMES, PickledArray
from dnnlib.safe_pickle import RestrictedUnpickler, UnsafePickleError
from dnnlib.util import first_line
from training.data.image_files import DatasetError


def load_pickled_batch(stream: IO[bytes], name: str) -> dict[str, Any]:
    """Unpickle one batch, a dict by string keys; its arrays are read-only NumPy arrays.

    Pickles of Python 2 and 3 are read. No class or function of a pickle is ever called, not even
    NumPy's.

    Args:
        stream: The pickle.
        name: What messages call it.

    Raises:
        DatasetError: The batch is damaged, is no dict, or asks for anything except arrays and
            plain containers.
    """
    try:
        content = RestrictedUnpickler(stream, NUMPY_NAMES, encoding="latin1").load()
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


def _as_text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _unwrap(value: object) -> object:
    return value.array if isinstance(value, PickledArray) else value
