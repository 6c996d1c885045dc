"""Bias, activation function, gain and clamp as one operator."""

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as nnf

from torch_utils.ops import backend


class Activation(NamedTuple):
    """An activation function and the defaults that go with it.

    `func(x, alpha)` is the function; `def_alpha` its default shape parameter; `def_gain` the
    default factor on its output, which restores roughly unit variance after the nonlinearity.
    """

    func: Callable[[torch.Tensor, float], torch.Tensor]
    def_alpha: float
    def_gain: float


# Only lrelu has a shape parameter; the other functions take alpha and do not use it.
activation_funcs = {
    "linear": Activation(lambda x, alpha: x, 0.0, 1.0),
    "relu": Activation(lambda x, alpha: nnf.relu(x), 0.0, sqrt(2)),
    "lrelu": Activation(lambda x, alpha: nnf.leaky_relu(x, alpha), 0.2, sqrt(2)),
    "tanh": Activation(lambda x, alpha: torch.tanh(x), 0.0, 1.0),
    "sigmoid": Activation(lambda x, alpha: torch.sigmoid(x), 0.0, 1.0),
    "elu": Activation(lambda x, alpha: nnf.elu(x), 0.0, 1.0),
    "selu": Activation(lambda x, alpha: nnf.selu(x), 0.0, 1.0),
    "softplus": Activation(lambda x, alpha: nnf.softplus(x), 0.0, 1.0),
    "swish": Activation(lambda x, alpha: nnf.silu(x), 0.0, sqrt(2)),
}

# Where the native operator is the faster one on the CPU (benchmarks/ops.py): PyTorch's vector code
# for curved functions is better, and with few elements the way to an operator of ours costs more.
_PIECEWISE_LINEAR = ("linear", "relu", "lrelu")
_MIN_NATIVE_ELEMENTS = 2**18


def bias_act(  # noqa: PLR0913 - the operator's established signature
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> torch.Tensor:
    """Compute `clamp(gain * act(x + b), -clamp, clamp)`; differentiates twice.

    Args:
        x: Tensor of any shape and floating-point dtype.
        b: Bias of shape [x.shape[dim]], or None for no bias.
        dim: Dimension of `x` that the bias runs along; unused without a bias.
        act: Name in `activation_funcs`.
        alpha: Shape parameter of the activation; None takes its default.
        gain: Factor on the activated value; None takes the activation's default.
        clamp: Largest magnitude of the result, >= 0; None does not clamp.
        impl: 'cuda' is the native operator of the device of `x` where it can be had (see
            `backend`); 'ref' is plain PyTorch. The native one saves its result for the derivative,
            so that must not be changed in place, knows no `torch.func`, differentiates twice, and
            takes the slope at a clamped value for 0 where the value equals `clamp` exactly.

    Returns:
        Tensor with the shape, dtype and memory format of `x`.

    Raises:
        ValueError: An unknown activation or implementation, a bias that does not fit, or a
            negative clamp.
    """
    if act not in activation_funcs:
        raise ValueError(f"unknown activation {act!r}; choose from {', '.join(activation_funcs)}")
    if clamp is not None and clamp < 0:
        raise ValueError(f"clamp must be at least 0, or None for no clamp, not {clamp}")
    if b is not None:
        _check_bias(x, b, dim)
    spec = activation_funcs[act]
    alpha = spec.def_alpha if alpha is None else alpha
    gain = spec.def_gain if gain is None else gain
    b = None if b is None else b.to(x.dtype)
    native = backend.uses_native(x, impl, faster_on_cpu=_is_faster_on_cpu(x, act))
    function = torch.ops.coopinit.bias_act if native else _bias_act_ref
    return function(x, b, dim, act, alpha, gain, clamp)


def _is_faster_on_cpu(x: torch.Tensor, act: str) -> bool:
    # A compiled graph shall not depend on the size of the batch.
    large = torch.compiler.is_compiling() or x.numel() >= _MIN_NATIVE_ELEMENTS
    return act in _PIECEWISE_LINEAR and large


def _check_bias(x: torch.Tensor, b: torch.Tensor, dim: int) -> None:
    if not 0 <= dim < x.ndim:
        raise ValueError(f"dim is {dim}, but x has dimensions 0 to {x.ndim - 1}")
    if b.shape != (x.shape[dim],):
        raise ValueError(
            f"bias has shape {list(b.shape)}, expected [{x.shape[dim]}], the size of x along {dim=}"
        )


def _bias_act_ref(
    x: torch.Tensor,
    b: torch.Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    x = activation_funcs[act].func(x, alpha)
    if gain != 1:
        x = x * gain
    if clamp is not None:
        x = x.clamp(-clamp, clamp)
    return x
