"""Which implementation the operators of this package use: native or plain PyTorch.

The choice is one for the process, `--ops` of the front doors. Imports no torch, so that their help
answers at once.
"""

import logging
from typing import TYPE_CHECKING

from dnnlib.errors import UserError

if TYPE_CHECKING:
    import torch


MODES = ("auto", "native", "ref")

logger = logging.getLogger(__name__)
_mode = "auto"
_ready: dict[str, bool] = {}  # device type -> whether its native operators are loaded


class NativeUnavailableError(UserError):
    """Native operators cannot be had; the message is a paragraph for the user."""


def select(mode: str, device_type: str | None = None) -> None:
    """Choose the implementation for this process, and build and load it ahead of its first use.

    Args:
        mode: 'auto' is native where it can be had and pays, with one paragraph of warning where it
            cannot be had; 'native' insists; 'ref' is plain PyTorch.
        device_type: 'cpu' or 'cuda', what to build for; None leaves that to the first use.

    Raises:
        NativeUnavailableError: `mode` is 'native' and the operators cannot be had; the mode stays.
        ValueError: An unknown mode.
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f"ops must be one of {', '.join(MODES)}, not {mode!r}")
    if mode != "ref" and device_type is not None:
        _load(mode, device_type)
    _mode = mode


def selected() -> str:
    """The mode that `select` chose; 'auto' before."""
    return _mode


def uses_native(x: "torch.Tensor", impl: str, faster_on_cpu: bool = True) -> bool:
    """Whether an operator that is given the tensor `x` runs natively.

    Args:
        x: Tensor.
        impl: Argument of the operator: 'cuda' is native where available, 'ref' is plain PyTorch.
        faster_on_cpu: Whether the native operator is measurably the faster one on the CPU; where
            not, mode 'auto' does without it there.

    Raises:
        NativeUnavailableError: The mode is 'native' and the operators cannot be had.
        ValueError: `impl` is neither.
    """
    if impl not in ("cuda", "ref"):
        raise ValueError(f"impl must be 'cuda' or 'ref', not {impl!r}")
    device_type = x.device.type
    if impl == "ref" or _mode == "ref" or device_type not in ("cpu", "cuda"):
        return False
    if not x.is_floating_point():
        return False
    if _mode == "auto" and device_type == "cpu" and not faster_on_cpu:
        return False
    return _ready.get(device_type) or _load(_mode, device_type)


def _load(mode: str, device_type: str) -> bool:
    """Load the native operators; in mode 'auto' say why not, once in a process."""
    if mode == "auto" and device_type in _ready:
        return _ready[device_type]
    from torch_utils.ops.native import library

    problem = library.load(device_type)
    first = device_type not in _ready
    _ready[device_type] = problem is None
    if problem is not None and mode == "native":
        raise NativeUnavailableError(f"{problem} Or choose --ops=auto or --ops=ref.")
    if problem is not None and first:
        logger.warning(
            "%s Until then plain PyTorch takes their place: the same results, slower. "
            "--ops=ref chooses that without this message.",
            problem,
        )
    return problem is None
