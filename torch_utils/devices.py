"""Choosing the torch device that a front door computes on."""

import re

import torch


def find_device(name: str | None = None, processes: int = 1) -> torch.device:
    """The device `cpu`, `cuda` or `cuda:N` of that name; None: the GPU where there is one.

    Args:
        name: The device, or None.
        processes: How many need a GPU each, unless they compute on the CPU.

    Raises:
        ValueError: Another name, or a GPU that is not there; the message is about `--device` or
            `--gpus`.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    named = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", name)
    if not named:
        raise ValueError(f"--device must be cpu, cuda or cuda:N, not {name}")
    if name != "cpu" and int(named[1] or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device={name} is not there; use --device=cpu")
    if name != "cpu" and processes > torch.cuda.device_count():
        raise ValueError(f"--gpus={processes}: there are {torch.cuda.device_count()} GPUs here")
    return torch.device(name)
