"""Loads the native operators, and tells PyTorch about their shapes and derivatives.

`torch.ops.coopinit.*` are defined in `src/cpu_binding.cpp`. Here they get what `torch.compile` and
`torch.export` need to know of them (fake kernels), and derivatives, which are the same operators
again. Shapes and arguments are checked by the public functions, `bias_act` and `upfirdn2d`.
"""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from torch_utils.ops.native import build

MAX_ELEMENTS = 2**31 - 1

_problems: dict[str, str | None] = {}  # device type -> what `load` has returned


def load(device_type: str) -> str | None:
    """Build if need be, and load the operators for 'cpu' or 'cuda'; tries once in a process.

    Returns:
        None, or one paragraph: what is missing or failed and how to proceed.
    """
    if device_type not in _problems:
        _problems[device_type] = _load(device_type)
    return _problems[device_type]


if "torch._dynamo" in sys.modules:  # else its import would cost every user seconds
    # A first use while torch.compile traces: it shall run this function, not look into it.
    load = torch.compiler.assume_constant_result(load)


def _load(device_type: str) -> str | None:
    if device_type == "cuda" and (problem := load("cpu")):
        return problem  # which has the schema
    try:
        path = build.library(device_type)
    except build.BuildError as error:
        return str(error)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return (
            f"The native operators in {path} cannot be loaded ({build.first_line(error)}). "
            "Delete that file and try again."
        )
    if device_type == "cpu":
        _register()
    return None


def _register() -> None:
    for name, fake in (
        ("bias_act", _fake_bias_act),
        ("bias_act_grad", _fake_bias_act_grad),
        ("bias_act_grad2", _fake_bias_act_grad2),
        ("upfirdn2d", _fake_upfirdn2d),
    ):
        torch.library.register_fake(f"coopinit::{name}", fake)
    for name, backward, setup in (
        ("bias_act", _bias_act_backward, _bias_act_setup),
        ("bias_act_grad", _bias_act_grad_backward, _bias_act_grad_setup),
        ("bias_act_grad2", _third_derivative, _keep_nothing),
        ("upfirdn2d", _upfirdn2d_backward, _upfirdn2d_setup),
    ):
        torch.library.register_autograd(f"coopinit::{name}", backward, setup_context=setup)


def _empty(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """What kernels return for an input like `x`: channels last if that is not contiguous too."""
    torch._check(x.numel() <= MAX_ELEMENTS, lambda: f"{x.numel()} elements are too many")
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


# bias_act. Of a piecewise linear function the output tells the slope, if gain > 0 and alpha >= 0,
# and the next layer keeps the output anyway. Other functions keep their input, and compute again.

_PIECEWISE_LINEAR = ("linear", "relu", "lrelu")


def _fake_bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    return _empty(x, x.shape)


def _fake_bias_act_grad(  # noqa: PLR0913 - the schema
    dy: torch.Tensor,
    saved: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
    from_output: bool,
) -> torch.Tensor:
    return _empty(saved, saved.shape)


def _fake_bias_act_grad2(  # noqa: PLR0913 - the schema
    g: torch.Tensor,
    dy: torch.Tensor,
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    return _empty(x, x.shape)


def _bias_act_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, b, ctx.dim, *ctx.spec = inputs
    act, alpha, gain, clamp = ctx.spec
    ctx.has_bias = b is not None
    ctx.from_output = act in _PIECEWISE_LINEAR and gain > 0 and alpha >= 0
    if act == "linear" and clamp is None:
        ctx.save_for_backward()
    elif ctx.from_output:
        ctx.save_for_backward(output)
    else:
        ctx.save_for_backward(x, b)


def _bias_act_backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    act, _, gain, clamp = ctx.spec
    if act == "linear" and clamp is None:
        dx = dy if gain == 1 else dy * gain
    elif ctx.from_output:
        (y,) = ctx.saved_tensors
        dx = torch.ops.coopinit.bias_act_grad(dy, y.detach(), None, ctx.dim, *ctx.spec, True)
    else:
        x, b = ctx.saved_tensors
        dx = torch.ops.coopinit.bias_act_grad(dy, x, b, ctx.dim, *ctx.spec, False)
    db = _sum_except(dx, ctx.dim) if ctx.has_bias and ctx.needs_input_grad[1] else None
    return dx, db, *[None] * 5


def _bias_act_grad_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    dy, saved, b, ctx.dim, *ctx.spec, ctx.from_output = inputs
    ctx.save_for_backward(dy, saved, b)


def _bias_act_grad_backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    dy, saved, b = ctx.saved_tensors
    d_dy = torch.ops.coopinit.bias_act_grad(g, saved, b, ctx.dim, *ctx.spec, ctx.from_output)
    if ctx.spec[0] in _PIECEWISE_LINEAR or not any(ctx.needs_input_grad[1:3]):
        return d_dy, *[None] * 8
    d_x = torch.ops.coopinit.bias_act_grad2(g, dy, saved, b, ctx.dim, *ctx.spec)
    d_b = _sum_except(d_x, ctx.dim) if b is not None else None
    return d_dy, d_x, d_b, *[None] * 6


def _sum_except(x: torch.Tensor, dim: int) -> torch.Tensor:
    others = [i for i in range(x.ndim) if i != dim]
    return x.sum(others) if others else x  # sum([]) would be that of everything


def _keep_nothing(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    pass


def _third_derivative(ctx: Any, grad: torch.Tensor) -> NoReturn:
    raise NotImplementedError("native bias_act differentiates twice; impl='ref' has more")


# upfirdn2d is linear in the images; its adjoint swaps the factors and flips the filter. The filter
# gets no gradient: the public function hands a filter that wants one to plain PyTorch.


def _fake_upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip: bool,
    gain: float,
) -> torch.Tensor:
    height = (x.shape[2] * up[1] + padding[2] + padding[3] - f.shape[0]) // down[1] + 1
    width = (x.shape[3] * up[0] + padding[0] + padding[1] - f.shape[1]) // down[0] + 1
    return _empty(x, [x.shape[0], x.shape[1], height, width])


def _upfirdn2d_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip, ctx.gain = inputs
    ctx.save_for_backward(f)
    ctx.sizes = list(zip(x.shape[:1:-1], output.shape[:1:-1], strict=True))  # (in, out) of x, y


def _upfirdn2d_backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (f,) = ctx.saved_tensors
    padding = []
    for axis, (size_in, size_out) in enumerate(ctx.sizes):
        up, down, before = ctx.up[axis], ctx.down[axis], ctx.padding[2 * axis]
        padding += [
            f.shape[1 - axis] - 1 - before,
            (size_in - 1) * up + 1 - size_out * down + before,
        ]
    dx = torch.ops.coopinit.upfirdn2d(dy, f, ctx.down, ctx.up, padding, not ctx.flip, ctx.gain)
    return dx, *[None] * 6
