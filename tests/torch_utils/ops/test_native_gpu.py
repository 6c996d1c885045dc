"""The native operators on a GPU: all that the CPU tests show, again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.golden_cases import load_cases, relative_error
from tests.torch_utils.ops.test_native import (
    DTYPES,
    LAYOUTS,
    bias_act_arguments,
    compare,
    examples,
    opcheck_cases,
)
from tests.torch_utils.ops.test_upfirdn2d import arguments
from torch_utils.ops import backend, upfirdn2d
from torch_utils.ops.bias_act import bias_act

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("native_on_gpu")]


@pytest.fixture
def native_on_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    backend.select("native", "cuda")


@pytest.mark.parametrize(("meta", "arrays"), load_cases("upfirdn2d"))
def test_golden_upfirdn2d(meta, arrays):
    kwargs = dict(meta)
    function = getattr(upfirdn2d, kwargs.pop("fn", "upfirdn2d"))
    y = function(torch.tensor(arrays["x"]).cuda(), torch.tensor(arrays["f"]).cuda(), **kwargs)
    assert relative_error(y, arrays["y"]) <= 1e-5


@pytest.mark.parametrize(("kwargs", "arrays"), load_cases("bias_act"))
def test_golden_bias_act(kwargs, arrays):
    x, b, dy = (torch.tensor(arrays[k]).cuda().requires_grad_() for k in ("x", "b", "dy"))
    y = bias_act(x, b, **kwargs)
    dx, db = torch.autograd.grad(y, [x, b], dy)
    for name, value in {"y": y, "dx": dx, "db": db}.items():
        assert relative_error(value, arrays[name]) <= 1e-5, name


@examples
@given(arguments(), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_upfirdn2d_equals_plain_pytorch(args, dtype, layout):
    x, f, *rest = args
    x, f = torch.tensor(x).to("cuda", dtype, memory_format=layout), torch.tensor(f).cuda()
    compare(lambda x, impl: upfirdn2d.upfirdn2d(x, f, *rest, impl=impl), [x], dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("taps", [[1, 3, 3, 1], list(range(1, 13))])
@pytest.mark.parametrize("kwargs", [{"up": 2}, {"down": 2}, {}])
def test_specialised_kernels(kwargs, taps, dtype, layout):
    f = upfirdn2d.setup_filter(taps, device="cuda")
    x = torch.randn(2, 5, 70, 45, device="cuda").to(dtype, memory_format=layout)
    pad = [7, 4, 3, 6]
    compare(lambda x, impl: upfirdn2d.upfirdn2d(x, f, padding=pad, impl=impl, **kwargs), [x], dtype)


@examples
@given(bias_act_arguments())
def test_bias_act_equals_plain_pytorch(args):
    x, b, dim, kwargs = args
    inputs = [x.cuda()] if b is None else [x.cuda(), b.cuda()]

    def function(x, *bias, impl):
        return bias_act(x, *(bias or [None]), dim=dim, **kwargs, impl=impl)

    compare(function, inputs, x.dtype)


def test_opcheck():
    for operator, args in opcheck_cases("cuda"):
        torch.library.opcheck(operator.default, args)
