"""The augmentation pipe as a function of images; test_augment_draws.py has the statistics."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden_cases import GOLDEN_DIR, load_cases, relative_error
from tests.pipes import make_pipe
from training import augment
from training.augment import AugmentPipe

EVERYTHING = dict.fromkeys(
    "xflip rotate90 xint scale rotate aniso xfrac brightness contrast lumaflip hue saturation "
    "imgfilter noise cutout".split(),
    1,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Recorded numbers.


@pytest.mark.parametrize(("case", "arrays"), load_cases("augment"))
def test_golden(case, arrays):
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    y = AugmentPipe(**case["kwargs"])(x, debug_percentile=case["percentile"])
    (dx,) = torch.autograd.grad(y, x, torch.from_numpy(arrays["dy"]))
    assert relative_error(y, arrays["y"]) < 2e-5
    assert relative_error(dx, arrays["dx"]) < 2e-5


@pytest.mark.parametrize("name", ["Hz_geom", "Hz_fbank"])
def test_golden_filters(name):
    expected = np.load(GOLDEN_DIR / "augment_filters.npz")[name]
    buffer = AugmentPipe().state_dict()[name]
    assert buffer.dtype == torch.float32 and buffer.shape == expected.shape
    np.testing.assert_allclose(buffer.numpy(), expected, rtol=0, atol=1e-7)


def test_buffers_are_those_of_the_pickle_format():
    assert set(AugmentPipe().state_dict()) == {"p", "Hz_geom", "Hz_fbank"}
    assert AugmentPipe().p.shape == () and AugmentPipe().p == 1


def test_filters_reconstruct_perfectly():
    pipe = AugmentPipe()
    impulse = torch.zeros(43)
    impulse[21] = 1
    torch.testing.assert_close(pipe.Hz_fbank.sum(dim=0), impulse)
    taps = pipe.Hz_geom.double().numpy() * math.sqrt(2)
    correlation = np.convolve(taps, taps[::-1])[1::2]
    np.testing.assert_allclose(correlation, np.eye(1, 11, 5)[0], atol=1e-7)


# Functions of the images.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 16, 33])
def test_identity_at_p_zero(channels, size):
    x = torch.randn([5, channels, size, size])
    torch.testing.assert_close(make_pipe(0, **EVERYTHING)(x), x, rtol=0, atol=2e-5)


def test_no_augmentation_by_default():
    x = torch.randn([2, 5, 7, 9])
    assert torch.equal(AugmentPipe()(x), x)


def test_seed_determines_the_draws():
    x = torch.rand([4, 3, 16, 16])
    pipe = make_pipe(0.8, **EVERYTHING)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(pipe(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_blitting_reaches_every_symmetry_of_the_square():
    # A smooth image: as the wavelet filter is not symmetric, a mirrored lookup is a tenth of a
    # pixel off and loses some of the highest frequencies. The recorded numbers show that too.
    x = torch.nn.functional.interpolate(torch.rand([1, 1, 3, 3]), size=16, mode="bicubic")
    y = make_pipe(1, xflip=1, rotate90=1)(x.repeat(300, 1, 1, 1))
    symmetries = [torch.rot90(f, k, [2, 3]) for f in (x, x.flip(3)) for k in range(4)]
    errors = torch.stack([(y - s).abs().amax(dim=[1, 2, 3]) for s in symmetries])
    assert errors.amin(dim=0).max() < 0.03
    assert len(errors.argmin(dim=0).unique()) == 8


@pytest.mark.parametrize("size", [8, 16, 32])
def test_constant_images_stay_constant_under_moderate_geometry(size):
    # Nothing but the image and its mirror images is ever looked up.
    x = torch.full([300, 1, size, size], 0.7)
    y = make_pipe(1, rotate=1, xfrac=1, xfrac_std=0.05, xflip=1, rotate90=1, xint=1)(x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-4)


def test_grey_images_follow_rgb_images_of_equal_channels():
    grey = torch.rand([2, 1, 24, 24])
    pipe = make_pipe(1, **EVERYTHING)
    rgb = pipe(grey.repeat(1, 3, 1, 1), debug_percentile=0.7)
    torch.testing.assert_close(pipe(grey, debug_percentile=0.7), rgb[:, :1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), (5, 8), (16, 16), (30, 24)])
def test_filtering_reflects_as_often_as_needed(shape):
    pipe = make_pipe(1, imgfilter=1, imgfilter_bands=[0, 1, 0, 0])
    x = torch.randn([2, 2, *shape], dtype=torch.float64)
    y = pipe(x, debug_percentile=0.9)
    gain = 2 ** torch.erfinv(torch.tensor(0.8, dtype=torch.float64)).item()
    gains = np.array([1, gain, 1, 1]) / math.sqrt((12 + gain**2) / 13)
    taps = gains @ pipe.Hz_fbank.double().numpy()
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), (21, 21), (21, 21)], mode="reflect")
    for axis in (2, 3):
        expected = np.apply_along_axis(np.convolve, axis, expected, taps, mode="valid")
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-6)


# Sizes, dtypes, derivatives.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [8, 16])
def test_small_images_and_every_dtype(size, dtype):
    x = (torch.rand([64, 3, size, size]) * 2 - 1).to(dtype).requires_grad_()
    y = make_pipe(1, **EVERYTHING)(x)
    y.square().sum().backward()
    assert y.dtype == x.grad.dtype == dtype and y.shape == x.shape
    assert y.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype):
    x = torch.randn([2, 3, 16, 16]).to(dtype)
    pipe = make_pipe(1, **EVERYTHING)
    expected = pipe(x.float(), debug_percentile=0.7).to(dtype)
    assert torch.equal(pipe(x, debug_percentile=0.7), expected)


@pytest.mark.slow
def test_second_derivatives():
    pipe = make_pipe(1, **EVERYTHING)
    x = torch.randn([1, 3, 4, 5], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: pipe(x, debug_percentile=0.7), [x])
    torch.autograd.gradgradcheck(lambda x: pipe(x, debug_percentile=0.7).square(), [x])


def test_gradient_penalty_through_the_pipe():
    pipe = make_pipe(0.7, **EVERYTHING)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Softplus())
    x = torch.rand([8, 3, 16, 16]).requires_grad_()
    (gradient,) = torch.autograd.grad(network(pipe(x)).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    for tensor in (x, network[0].weight):
        assert tensor.grad.isfinite().all() and tensor.grad.abs().max() > 0


# Bad input.


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 1, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_bad_images_are_refused(images):
    with pytest.raises(ValueError, match=r"floating-point images \[N, C, H, W\]"):
        AugmentPipe(xflip=1)(images)


def test_colours_of_two_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        AugmentPipe(hue=1)(torch.zeros(1, 2, 8, 8))


@pytest.mark.parametrize("q", [0, 1, -0.5])
def test_bad_percentile_is_refused(q):
    with pytest.raises(ValueError, match="between 0 and 1"):
        AugmentPipe()(torch.zeros(1, 3, 8, 8), debug_percentile=q)


def test_wrong_number_of_bands_is_refused():
    with pytest.raises(ValueError, match="4 entries, got 3"):
        AugmentPipe(imgfilter_bands=[1, 1, 1])


def test_imports_exist_in_the_official_repository():
    allowed = {
        "torch_utils": {"misc", "persistence"},
        "torch_utils.ops": {"conv2d_gradfix", "grid_sample_gradfix", "upfirdn2d"},
    }
    used = {
        "misc": {"constant", "assert_shape", "suppress_tracer_warnings", "profiled_function"},
        "persistence": {"persistent_class"},
        "conv2d_gradfix": {"conv2d"},
        "grid_sample_gradfix": {"grid_sample"},
        "upfirdn2d": {"upsample2d", "downsample2d"},
    }
    standard = {"__future__", "collections.abc", "functools", "math", "operator", "typing"}
    outside = standard | {"numpy", "torch"}
    for node in ast.walk(ast.parse(Path(augment.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module not in outside:
            assert {alias.name for alias in node.names} <= allowed[node.module]
        elif isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= outside
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr in used.get(node.value.id, {node.attr})
