import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.golden_cases import load_cases, relative_error
from torch_utils.ops import upfirdn2d as module
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

pytestmark = pytest.mark.usefixtures("each_implementation")


def definition(x, f, up, down, padding, flip_filter, gain):
    """The operator along the last two axes as its docstring says it, one output at a time."""
    f = f.astype(np.float64)
    f = np.outer(f, f) if f.ndim == 1 else f
    f = f if flip_filter else f[::-1, ::-1]  # windows are multiplied elementwise, not convolved
    x0, x1, y0, y1 = padding
    height, width = x.shape[2] * up[1], x.shape[3] * up[0]
    padded = np.zeros(
        [*x.shape[:2], height + max(y0, 0) + max(y1, 0), width + max(x0, 0) + max(x1, 0)]
    )
    top, left = max(y0, 0), max(x0, 0)
    padded[:, :, top : top + height : up[1], left : left + width : up[0]] = x
    padded = padded[:, :, max(-y0, 0) : padded.shape[2] - max(-y1, 0)]
    padded = padded[:, :, :, max(-x0, 0) : padded.shape[3] - max(-x1, 0)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, f.shape, axis=(2, 3))
    return gain * (windows[:, :, :: down[1], :: down[0]] * f).sum(axis=(-2, -1))


@pytest.mark.parametrize(("meta", "arrays"), load_cases("upfirdn2d"))
def test_golden(meta, arrays):
    kwargs = dict(meta)
    function = getattr(module, kwargs.pop("fn", "upfirdn2d"))
    x = torch.tensor(arrays["x"], requires_grad=True)
    y = function(x, torch.tensor(arrays["f"]), **kwargs)
    assert relative_error(y, arrays["y"]) <= 1e-5
    if "dy" in arrays:
        (dx,) = torch.autograd.grad(y, x, torch.tensor(arrays["dy"]))
        assert relative_error(dx, arrays["dx"]) <= 1e-5


@st.composite
def arguments(draw):
    """Arguments of the operator whose padded image is at least as large as the filter."""
    scale = st.integers(1, 4)
    up, down = (draw(scale), draw(scale)), (draw(scale), draw(scale))
    h, w = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    ndim = draw(st.sampled_from([1, 2]))
    fw = draw(st.integers(1, 6))
    fh = fw if ndim == 1 else draw(st.integers(1, 6))
    padding = []
    for size, taps in ((w * up[0], fw), (h * up[1], fh)):
        before = draw(st.integers(-size - 2, 5))
        padding += [before, draw(st.integers(taps - size - before, taps - size - before + 6))]
    shape = [draw(st.integers(1, 2)), draw(st.integers(1, 3)), h, w]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    f = rng.standard_normal([fw] if ndim == 1 else [fh, fw]).astype(np.float32)
    flip = draw(st.booleans())
    gain = draw(st.sampled_from([1, 4, 0.5]))  # exact in float32, the dtype of the filter
    return rng.standard_normal(shape), f, up, down, padding, flip, gain


# The fixture chooses the implementation, the same for all examples.
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(arguments())
def test_equals_its_definition(args):
    x, f, *rest = args
    y = upfirdn2d(torch.tensor(x), torch.tensor(f), *rest)
    expected = definition(x, f, *rest)
    assert y.dtype == torch.float64
    assert relative_error(y, expected) <= 1e-9


def test_without_a_filter_only_moves_pixels():
    x = torch.randn(1, 2, 3, 4)
    y = upfirdn2d(x, None, up=2, down=[2, 1], padding=[2, 0, 1, -2])
    expected = torch.zeros(1, 2, 5, 5)
    expected[:, :, 1::2, 1:] = x[:, :, :2]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 1], list(range(1, 13))])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_constant_image_keeps_its_size_ratio_and_value(taps, factor):
    f = setup_filter(taps)
    x = torch.ones(1, 1, 12 * factor, 12 * factor)
    up, down, same = upsample2d(x, f, factor), downsample2d(x, f, factor), filter2d(x, f)
    assert up.shape[2] == 12 * factor**2
    assert down.shape[2] == 12
    assert same.shape == x.shape
    for y in (up, down, same):
        start = y.shape[2] // 2
        # Single phases of an enlarged image may differ; together they keep the brightness.
        period = y[:, :, start : start + factor, start : start + factor]
        assert period.mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("f", [setup_filter([1, 3, 3, 1]), setup_filter([1, 2, 3], separable=True)])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"padding": [2, 1, -1, 3]},
        {"up": 2, "padding": [2, 1, 2, 1], "gain": 4},
        {"down": 2, "padding": 1},
        {"up": [3, 1], "down": [2, 3], "padding": [1, 2, 2, 1], "flip_filter": True},
    ],
)
def test_differentiates_twice(f, kwargs):
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    # The operator is linear: without the square its second derivative would be checked against 0.
    for function in (upfirdn2d, lambda *a, **k: upfirdn2d(*a, **k).square()):
        assert torch.autograd.gradcheck(lambda v, fn=function: fn(v, f, **kwargs), (x,))
        assert torch.autograd.gradgradcheck(lambda v, fn=function: fn(v, f, **kwargs), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kwargs", [{}, {"up": 2}, {"down": 2}, {"up": 2, "down": 3}])
def test_keeps_dtype_and_memory_format(dtype, kwargs):
    f = setup_filter([1, 3, 3, 1])
    x = torch.randn(2, 3, 8, 8)
    expected = upfirdn2d(x, f, padding=2, **kwargs)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = upfirdn2d(x.to(dtype, memory_format=memory_format), f, padding=2, **kwargs)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=memory_format)
        assert relative_error(y.float(), expected) <= 4 * torch.finfo(dtype).eps + 1e-6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"impl": "native"}, "impl must be 'cuda' or 'ref', not 'native'"),
        ({"x": torch.zeros(3, 8, 8)}, r"\[N, C, H, W\], not \[3, 8, 8\]"),
        ({"f": torch.ones(3, 3, dtype=torch.float64)}, "float32"),
        ({"f": torch.ones(1, 3, 3)}, "setup_filter"),
        ({"up": 0}, "positive integer"),
        ({"up": [2, 1, 1]}, "positive integer"),
        ({"down": 1.5}, "positive integer"),
        ({"padding": [1, 2, 3]}, r"\[x0, x1, y0, y1\]"),
        ({"padding": 0.5}, r"\[x0, x1, y0, y1\]"),
        ({"padding": -3}, "2x2 pixels, smaller than the filter of 4x4"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        upfirdn2d(**{"x": torch.zeros(1, 1, 8, 8), "f": setup_filter([1, 3, 3, 1]), **kwargs})
