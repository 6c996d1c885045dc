import numpy as np
import pytest
import torch

from tests.golden_cases import load_cases, relative_error
from torch_utils.ops.upfirdn2d import setup_filter


@pytest.mark.parametrize(("kwargs", "arrays"), load_cases("setup_filter"))
def test_golden(kwargs, arrays):
    f = setup_filter(**kwargs)
    assert f.dtype == torch.float32
    assert relative_error(f, arrays["y"]) <= 1e-5


@pytest.mark.parametrize("taps", [7, 8])
def test_filters_stay_separable_from_eight_taps_on(taps):
    assert setup_filter([1.0] * taps).ndim == (1 if taps >= 8 else 2)
    assert setup_filter([1.0] * taps, separable=True).ndim == 1
    assert setup_filter([1.0] * taps, separable=False).ndim == 2


@pytest.mark.parametrize("separable", [False, True])
def test_gain_is_that_of_the_image_whichever_way_the_filter_is_applied(separable):
    f = setup_filter([1, 2, 1], gain=4, separable=separable)
    response = torch.outer(f, f) if separable else f
    assert response.sum().item() == pytest.approx(4)


def test_takes_tensors_and_arrays_without_changing_them():
    for given in (torch.tensor([1.0, 3.0]), np.array([1.0, 3.0])):
        f = setup_filter(given, normalize=True, flip_filter=True, gain=2)
        assert f[0, 0].item() == pytest.approx(2 * 9 / 16)
        assert list(given) == [1, 3]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"f": []}, "must have shape"),
        ({"f": np.ones([2, 2, 2])}, "must have shape"),
        ({"f": [[1, 2], [3, 4]], "separable": True}, "one-dimensional"),
        ({"f": [1, -1]}, "normalize=False"),
    ],
)
def test_bad_filters_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        setup_filter(**kwargs)
