"""The native operators on the CPU against plain PyTorch, and what PyTorch demands of operators."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.golden_cases import relative_error
from tests.torch_utils.ops.test_upfirdn2d import arguments
from torch_utils.ops import backend
from torch_utils.ops.bias_act import activation_funcs, bias_act
from torch_utils.ops.upfirdn2d import downsample2d, setup_filter, upfirdn2d, upsample2d

pytestmark = pytest.mark.usefixtures("native")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
examples = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def derivatives(function, inputs, seed):
    """Output, its gradients, and those of their product with noise: (y, firsts, seconds)."""
    inputs = [v.detach().requires_grad_() for v in inputs]
    y = function(*inputs)
    rng = np.random.default_rng(seed)
    noise = lambda like: torch.tensor(rng.standard_normal(like.shape)).to(like)  # noqa: E731
    dy = noise(y).requires_grad_()
    firsts = torch.autograd.grad(y, inputs, dy, create_graph=True)
    total = sum((first * noise(first)).sum() for first in firsts)
    seconds = torch.autograd.grad(total, [dy, *inputs], allow_unused=True, materialize_grads=True)
    return [y, *firsts, *seconds]


def compare(function, inputs, dtype, seed=0):
    """Native results and plain ones, which are computed in float64 for half precisions."""
    results = derivatives(lambda *v: function(*v, impl="cuda"), inputs, seed)
    half = dtype in (torch.float16, torch.bfloat16)
    exact = [v.double() for v in inputs] if half else inputs
    expected = derivatives(lambda *v: function(*v, impl="ref"), exact, seed)
    # Derivatives of rounded numbers: some roundings, in sums over the batch more of them.
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 16 * torch.finfo(dtype).eps)
    for index, (result, reference) in enumerate(zip(results, expected, strict=True)):
        assert result.dtype == dtype
        assert relative_error(result.double(), reference.double()) <= tolerance, index


@examples
@given(arguments(), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_upfirdn2d_equals_plain_pytorch_with_both_derivatives(args, dtype, layout):
    x, f, *rest = args
    x = torch.tensor(x).to(dtype, memory_format=layout)

    def function(x, impl):
        return upfirdn2d(x, torch.tensor(f), *rest, impl=impl)

    compare(function, [x], dtype)


@st.composite
def bias_act_arguments(draw):
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([*LAYOUTS, None]))
    ndim = 4 if layout is torch.channels_last else draw(st.integers(1, 5))
    shape = [draw(st.integers(1, 5)) for _ in range(ndim)]
    dim = draw(st.integers(0, ndim - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = torch.tensor(rng.standard_normal(shape) * 2).to(dtype)
    if layout is torch.channels_last:
        x = x.contiguous(memory_format=layout)
    elif layout is None:
        x = x.mT.contiguous().mT if ndim > 1 else x[:, None].expand(-1, 2)[:, 0]  # any strides
    b = torch.tensor(rng.standard_normal(shape[dim])).to(dtype) if draw(st.booleans()) else None
    kwargs = dict(
        act=draw(st.sampled_from(list(activation_funcs))),
        alpha=draw(st.sampled_from([None, 0.1, 0.0, -0.3])),
        gain=draw(st.sampled_from([None, 1, 0.7, -1.5])),
        # Between the numbers of half precisions, so that rounding does not decide what is cut off.
        clamp=draw(st.sampled_from([None, 0.90123, 256])),
    )
    return x, b, dim, kwargs


@examples
@given(bias_act_arguments())
def test_bias_act_equals_plain_pytorch_with_both_derivatives(args):
    x, b, dim, kwargs = args

    def function(x, *bias, impl):
        return bias_act(x, *(bias or [None]), dim=dim, **kwargs, impl=impl)

    compare(function, [x] if b is None else [x, b], x.dtype)


@pytest.mark.parametrize("act", activation_funcs)
def test_activations_keep_their_precision_everywhere(act):
    x = torch.cat([torch.linspace(-120, 120, 20001), torch.tensor([0.0, 1e-6, -1e-6, 88.7, -88.7])])
    x.requires_grad_()
    y = bias_act(x, act=act, gain=1)
    expected = bias_act(x.double(), act=act, gain=1, impl="ref")
    assert torch.allclose(y.double(), expected, rtol=2e-6, atol=1e-7)
    (dx,) = torch.autograd.grad(y.sum(), x)
    (expected_dx,) = torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(dx, expected_dx, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("act", activation_funcs)
def test_not_a_number_stays_and_infinity_is_handled_alike(act):
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    for clamp in (None, 2):
        y, expected = (bias_act(x, act=act, clamp=clamp, impl=impl) for impl in ("cuda", "ref"))
        assert torch.allclose(y, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batches(dtype, layout):
    x = torch.empty(0, 3, 8, 8, dtype=dtype).to(memory_format=layout).requires_grad_()
    y = bias_act(upsample2d(x, setup_filter([1, 3, 3, 1])), torch.zeros(3), act="swish", clamp=1)
    assert y.shape == (0, 3, 16, 16) and y.dtype == dtype
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_more_elements_than_an_index_holds_are_refused():
    x = torch.zeros(1).expand(2**16, 1, 2**8, 2**7)
    f = setup_filter([1, 1])
    for call in (lambda: bias_act(x, act="relu"), lambda: upfirdn2d(x, f)):
        with pytest.raises(
            RuntimeError, match=r"2147483648 elements is too large.*smaller batches"
        ):
            call()
    x = torch.zeros(1).expand(2**14, 1, 2**8, 2**7)
    with pytest.raises(RuntimeError, match="too large"):
        upsample2d(x, f)
    meta = torch.empty(2**31, device="meta")
    with pytest.raises(RuntimeError, match="too many"):
        torch.ops.coopinit.bias_act(meta, None, 0, "relu", 0.0, 1.0, None)


def opcheck_cases(device="cpu"):
    """Every operator with its arguments, small."""
    x = torch.randn(2, 3, 6, 5, device=device)
    b, f = torch.randn(3, device=device), torch.rand(4, 3, device=device)
    ops = torch.ops.coopinit
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        leaf = images.clone().requires_grad_()
        bias = b.clone().requires_grad_()
        yield ops.upfirdn2d, (leaf, f, [2, 1], [1, 2], [2, 1, 3, 0], False, 2.0)
        for act in ("lrelu", "swish"):
            spec = (1, act, 0.2, 1.5, 0.9)
            yield ops.bias_act, (leaf, bias, *spec)
            yield ops.bias_act_grad, (leaf, images, b, *spec, False)
            yield ops.bias_act_grad2, (images, images + 1, images, b, *spec)
        yield ops.bias_act_grad, (leaf, images, None, 1, "lrelu", 0.2, 1.5, 0.9, True)


# PyTorch 2.14's own check looks at gradients of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
def test_opcheck():
    for operator, args in opcheck_cases():
        torch.library.opcheck(operator.default, args)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("f", setup_filter([1, 3, 3, 1]))

    def forward(self, x, b):
        f = self.f
        return downsample2d(bias_act(upsample2d(x, f), b, act="lrelu", clamp=2), f).square().sum()


def test_export_keeps_the_operators():
    x, b = torch.randn(2, 3, 8, 8), torch.randn(3)
    program = torch.export.export(Block(), (x, b))
    names = {str(node.target) for node in program.graph.nodes}
    assert {"coopinit.upfirdn2d.default", "coopinit.bias_act.default"} <= names
    assert torch.allclose(program.module()(x, b), Block()(x, b))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
def test_compiled_training_step_without_a_graph_break(dynamic):
    torch._dynamo.reset()
    # The back end 'aot_eager' traces forward and backward and runs them without code generation.
    compiled = torch.compile(Block(), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in (8, 12):
        x, b = torch.randn(2, 3, size, size, requires_grad=True), torch.randn(3, requires_grad=True)
        got = torch.autograd.grad(compiled(x, b), [x, b])
        expected = torch.autograd.grad(Block()(x, b), [x, b])
        for result, reference in zip(got, expected, strict=True):
            assert relative_error(result, reference) <= 1e-5


def test_forward_keeps_only_what_the_derivative_needs():
    x, b = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(3, requires_grad=True)

    def saved(**kwargs):
        y = bias_act(x, b, **kwargs)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda v: v):
            y = bias_act(x, b, **kwargs)
        return y, {v.data_ptr() for v in kept if v is not None}

    assert saved(act="linear", gain=2)[1] == set()
    for kwargs in ({"act": "lrelu"}, {"act": "linear", "clamp": 1}, {"act": "relu", "clamp": 1}):
        y, kept = saved(**kwargs)
        assert kept == {y.data_ptr()}, "the next layer keeps it anyway"
    _, kept = saved(act="swish")
    assert kept == {x.data_ptr(), b.data_ptr()}


def test_a_filter_that_wants_a_gradient_gets_it():
    x, f = torch.randn(1, 2, 6, 6), setup_filter([1, 3, 3, 1]).requires_grad_()
    (df,) = torch.autograd.grad(upsample2d(x, f).square().sum(), f)
    (expected,) = torch.autograd.grad(upsample2d(x, f, impl="ref").square().sum(), f)
    assert torch.equal(df, expected) and df.any()


def test_a_third_derivative_says_what_to_do():
    x = torch.randn(3, requires_grad=True)
    grad = bias_act(x, act="tanh").sum()
    for _ in range(2):
        (grad,) = torch.autograd.grad(grad.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="impl='ref'"):
        torch.autograd.grad(grad.sum(), x)


def test_threads_give_the_same_numbers():
    x, f = torch.randn(8, 16, 40, 40), setup_filter([1, 3, 3, 1])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(bias_act(upsample2d(x, f), torch.randn(16) * 0, act="lrelu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_impl_ref_and_mode_ref_do_without(monkeypatch):
    x = torch.randn(2, 3)

    def fail(*args):
        raise AssertionError("native operator was called")

    monkeypatch.setattr(torch.ops.coopinit, "bias_act", fail)
    bias_act(x, act="relu", impl="ref")
    backend.select("ref")
    bias_act(x, act="relu")


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_a_bias_of_every_element(native, act):
    """Nothing is left to sum over."""
    torch.manual_seed(0)
    gradients = []
    for impl in ("cuda", "ref"):
        x, b = (torch.linspace(-1, 1, 5, requires_grad=True) for _ in range(2))
        bias_act(x, b, dim=0, act=act, impl=impl).square().sum().backward()
        gradients.append((x.grad, b.grad))
    torch.testing.assert_close(*gradients)
