import itertools

import pytest
import torch
import torch.nn.functional as nnf

from tests.golden_cases import load_cases, relative_error
from tests.speed import slow_except
from torch_utils.ops.conv2d_resample import conv2d_resample
from torch_utils.ops.upfirdn2d import resample_padding, setup_filter, upfirdn2d

FILTER = setup_filter([1, 2, 3, 5])  # asymmetric, so that a wrong flip shows


def definition(x, w, f, up, down, padding, groups, flip_weight, flip_filter):  # noqa: PLR0913
    """Upsample, convolve, downsample one after the other; all padding comes first."""
    if up > 1:
        padding = resample_padding(f, up=up, padding=padding)
    if down > 1:
        padding = resample_padding(f, down=down, padding=padding)
    x = upfirdn2d(x, None, up=up, padding=padding)
    if up > 1:
        x = upfirdn2d(x, f, gain=up**2, flip_filter=flip_filter)
    x = nnf.conv2d(x, w if flip_weight else w.flip([2, 3]), groups=groups)
    return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x


@pytest.mark.parametrize(("kwargs", "arrays"), load_cases("conv2d_resample"))
def test_golden(kwargs, arrays):
    x, w = (torch.tensor(arrays[name], requires_grad=True) for name in ("x", "w"))
    y = conv2d_resample(x, w, torch.tensor(arrays["f"]), **kwargs)
    dx, dw = torch.autograd.grad(y, [x, w], torch.tensor(arrays["dy"]))
    for name, value in {"y": y, "dx": dx, "dw": dw}.items():
        assert relative_error(value, arrays[name]) <= 1e-5, name


@pytest.mark.parametrize("flip_weight", [True, False])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize(("up", "down"), list(itertools.product([1, 2, 3], repeat=2)))
def test_every_order_of_steps_equals_the_definition(up, down, kernel, flip_weight):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    w = torch.randn(6, 2, *kernel, dtype=torch.float64)
    for f, padding in ((FILTER, 1), (FILTER, [3, -1, 0, 2]), (None, [2, 2, 1, 1])):
        args = (x, w, f, up, down, padding, 2, flip_weight, not flip_weight)
        assert relative_error(conv2d_resample(*args), definition(*args)) <= 1e-6


@pytest.mark.parametrize(
    ("up", "down", "kernel"),
    slow_except([(1, 1, 1), (2, 2, 3)], list(itertools.product([1, 2], [1, 2], [1, 3]))),
)
def test_differentiates_twice(up, down, kernel):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, kernel, kernel, dtype=torch.float64, requires_grad=True)

    def function(x, w):
        return conv2d_resample(x, w, FILTER, up, down, kernel // 2, groups=2, flip_weight=False)

    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"up": 0}, "up must be a positive integer, not 0"),
        ({"down": [2, 2]}, r"down must be a positive integer, not \[2, 2\]"),
        ({"groups": 0}, "groups must be a positive integer"),
        ({"x": torch.zeros(4, 8, 8)}, r"not \[4, 8, 8\] and \[6, 4, 3, 3\]"),
        ({"x": torch.zeros(1, 3, 8, 8)}, r"\[6, 4, 3, 3\] do not fit 3 input channels in 1 groups"),
        ({"groups": 4, "w": torch.zeros(6, 1, 3, 3)}, "do not fit 4 input channels in 4 groups"),
        ({"padding": [1, 2, 3]}, r"\[x0, x1, y0, y1\]"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        conv2d_resample(**{"x": torch.zeros(1, 4, 8, 8), "w": torch.zeros(6, 4, 3, 3), **kwargs})
