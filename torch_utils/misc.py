"""Small tools around tensors and modules."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.jit import TracerWarning, is_tracing  # pyright: ignore[reportPrivateImportUsage]


def constant(
    value: Any,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    """A tensor holding fixed numbers, made once per distinct set of arguments and then shared.

    Saves the host-to-device copy that building the same small tensor in every forward pass costs.
    The result is shared between callers: never write into it.

    Args:
        value: Scalar, nested sequence or NumPy array.
        shape: Shape to broadcast the value to; None keeps its own.
        dtype: Element type; None takes PyTorch's default floating-point type.
        device: Where the tensor lives; None takes the CPU.
        memory_format: Strides of the result; None takes `torch.contiguous_format`.

    Raises:
        ValueError: The value does not broadcast to `shape`.
    """
    array = np.asarray(value)
    device = torch.device("cpu" if device is None else device)
    if device.type == "cuda" and device.index is None:
        # Plain 'cuda' names a different GPU after torch.cuda.set_device().
        device = torch.device("cuda", torch.cuda.current_device())
    return _cached_constant(
        (array.tobytes(), array.dtype.str, array.shape),
        None if shape is None else tuple(shape),
        dtype or torch.get_default_dtype(),
        device,
        memory_format or torch.contiguous_format,
    )


@functools.lru_cache(maxsize=1024)
def _cached_constant(
    value: tuple[bytes, str, tuple[int, ...]],
    shape: tuple[int, ...] | None,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    data, array_dtype, array_shape = value
    array = np.frombuffer(data, dtype=array_dtype).reshape(array_shape)
    if shape is not None:
        array = np.broadcast_to(array, shape)
    # A tensor born in inference mode could never be saved for backward, and this one outlives
    # the caller's mode.
    with torch.inference_mode(False):
        tensor = torch.tensor(array.copy(), dtype=dtype, device=device)
        return tensor.contiguous(memory_format=memory_format)


def assert_shape(tensor: torch.Tensor, ref_shape: Sequence[int | None]) -> None:
    """Check the shape of a tensor; a reference size of None accepts any size.

    Raises:
        AssertionError: The number of dimensions or a size differs.
    """
    with suppress_tracer_warnings():  # a traced network freezes its sizes, which is fine here
        matches = tensor.ndim == len(ref_shape) and all(
            ref is None or size == ref for size, ref in zip(tensor.shape, ref_shape, strict=True)
        )
    if not matches:
        expected = ", ".join("any" if ref is None else str(int(ref)) for ref in ref_shape)
        raise AssertionError(f"tensor has shape {list(tensor.shape)}, expected [{expected}]")


@contextlib.contextmanager
def suppress_tracer_warnings() -> Iterator[None]:
    """Context in which `torch.jit.trace` does not warn about values that it freezes."""
    # Outside tracing there is nothing to silence, and catch_warnings is slow and not thread-safe.
    if not is_tracing():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=TracerWarning)
        yield


def profiled_function(fn: Callable) -> Callable:
    """Decorator that makes a function appear under its own name in the PyTorch profiler."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return wrapper


def params_and_buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All parameters, then all buffers of a module, each with its dotted name."""
    return list(module.named_parameters()) + list(module.named_buffers())


@torch.no_grad()
def finite_weights(nets: Mapping[str, torch.nn.Module]) -> dict[str, bool]:
    """Of each network, by name, whether all its parameters are finite; waits for the GPU."""
    norm_of_each = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
    norms = {name: norm_of_each(list(net.parameters())) for name, net in nets.items()}
    return {name: bool(torch.stack(of_one).sum().isfinite()) for name, of_one in norms.items()}


def copy_params_and_buffers(
    src_module: torch.nn.Module, dst_module: torch.nn.Module, require_all: bool = False
) -> None:
    """Copy every parameter and buffer of `src_module` to the one of the same name elsewhere.

    Values are converted to the dtype and device of the destination, whose `requires_grad` stays.
    Nothing is copied when an error is raised.

    Args:
        src_module: Where the values come from; names that only it has are ignored.
        dst_module: Written in place.
        require_all: Fail unless the source has every tensor of the destination.

    Raises:
        ValueError: A shape differs, or a tensor is missing and `require_all` is set.
    """
    src = dict(params_and_buffers(src_module))
    dst = dict(params_and_buffers(dst_module))
    missing = [name for name in dst if name not in src]
    if require_all and missing:
        raise ValueError(f"source module lacks {', '.join(missing)}")
    shared = [name for name in dst if name in src]
    for name in shared:
        # copy_() would silently broadcast.
        if src[name].shape != dst[name].shape:
            raise ValueError(
                f"{name} has shape {list(src[name].shape)} in the source module "
                f"and {list(dst[name].shape)} in the destination"
            )
    with torch.no_grad():
        for name in shared:
            dst[name].copy_(src[name])
