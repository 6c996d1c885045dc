from math import sqrt

import pytest
import torch

from tests.golden_cases import load_cases, relative_error
from torch_utils.ops.bias_act import activation_funcs, bias_act

pytestmark = pytest.mark.usefixtures("each_implementation")

DEFAULT_GAINS = {
    "linear": 1,
    "relu": sqrt(2),
    "lrelu": sqrt(2),
    "tanh": 1,
    "sigmoid": 1,
    "elu": 1,
    "selu": 1,
    "softplus": 1,
    "swish": sqrt(2),
}


@pytest.mark.parametrize(("kwargs", "arrays"), load_cases("bias_act"))
def test_golden_with_first_and_second_derivatives(kwargs, arrays):
    x, b, dy = (torch.tensor(arrays[name], requires_grad=True) for name in ("x", "b", "dy"))
    y = bias_act(x, b, **kwargs)
    dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
    d_dy, d_x = torch.autograd.grad(
        (dx * torch.tensor(arrays["g"])).sum(), [dy, x], allow_unused=True, materialize_grads=True
    )
    for name, value in {"y": y, "dx": dx, "db": db, "d_dy": d_dy, "d_x": d_x}.items():
        assert relative_error(value, arrays[name]) <= 1e-5, name


def test_activation_table():
    assert {name: spec.def_gain for name, spec in activation_funcs.items()} == DEFAULT_GAINS
    assert activation_funcs["lrelu"].def_alpha == 0.2


@pytest.mark.parametrize("act", activation_funcs)
def test_differentiates_twice(act):
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def function(x, b):
        return bias_act(x, b, act=act, gain=1.3, clamp=1.1)

    assert torch.autograd.gradcheck(function, (x, b))
    assert torch.autograd.gradgradcheck(function, (x, b))


def test_zero_clamp_and_no_bias():
    x = torch.randn(2, 3, 4)
    assert torch.equal(bias_act(x), x)
    assert not bias_act(x, clamp=0).any()
    assert torch.equal(bias_act(x, gain=0.5, clamp=0.1), (x * 0.5).clamp(-0.1, 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("act", activation_funcs)
def test_keeps_dtype_and_memory_format(act, dtype):
    x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last)
    y = bias_act(x, torch.randn(3), act=act, clamp=256)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"impl": "native"}, "impl must be 'cuda' or 'ref', not 'native'"),
        ({"act": "gelu"}, "unknown activation 'gelu'; choose from linear, relu, lrelu"),
        ({"clamp": -1}, "clamp must be at least 0"),
        ({"b": torch.zeros(4)}, r"shape \[4\], expected \[3\]"),
        ({"b": torch.zeros(3, 1)}, r"shape \[3, 1\], expected \[3\]"),
        ({"b": torch.zeros(3), "dim": 2}, "dim is 2, but x has dimensions 0 to 1"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        bias_act(torch.zeros(2, 3), **kwargs)
