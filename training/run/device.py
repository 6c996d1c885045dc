"""The machine as a run wants it: random numbers, operators, performance switches."""

from typing import Any

import torch

from torch_utils import host_memory
from torch_utils.ops import backend
from training.run.random_state import seed_all


def prepare_device(config: Any) -> torch.device:
    """Seed every random number generator and set the performance switches; returns the device.

    Args:
        config: The `TrainingConfig`.

    Raises:
        NativeUnavailableError: `config.ops` insists on native operators that cannot be had.
    """
    seed_all(config.seed)
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what events, pinned memory and synchronize() refer to
    else:
        host_memory.keep_freed_memory()
    backend.select(config.ops, device.type)
    return device
