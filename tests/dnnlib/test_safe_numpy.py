import io
import pickle

import numpy as np
import pytest

from dnnlib.safe_numpy import NUMPY_NAMES, PickledArray
from dnnlib.safe_pickle import RestrictedUnpickler, UnsafePickleError


def load(value, protocol=2):
    data = pickle.dumps(value, protocol)
    return RestrictedUnpickler(io.BytesIO(data), NUMPY_NAMES, encoding="latin1").load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers(protocol, dtype, order):
    array = np.array([[0, 1, 2], [3, 4, 250]]).astype(dtype, order=order)
    loaded = load(array, protocol).array
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype and not loaded.flags.writeable
    assert load(array[1, 2], protocol) == array[1, 2]


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.zeros(1, dtype=[("a", "u1")]),
        np.array(["text"]),
        np.zeros(1, complex),
        np.zeros((5, 0)),
        np.ma.zeros(2),
    ],
)
def test_everything_else_is_refused(value):
    with pytest.raises(UnsafePickleError):
        load(value)


def test_stand_ins_take_no_attributes():
    with pytest.raises(UnsafePickleError, match="PickledArray"):
        PickledArray.array = None
    with pytest.raises(AttributeError):
        PickledArray().surplus = None
