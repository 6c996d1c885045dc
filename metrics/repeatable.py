"""The same numbers at every call: what chooses algorithms and precision while one measures."""

import contextlib
from collections.abc import Iterator

import torch

_SWITCHES = (
    (torch.backends.cuda.matmul, "allow_tf32", False),
    (torch.backends.cudnn, "allow_tf32", False),
    (torch.backends.cudnn, "benchmark", False),
    (torch.backends.cudnn, "deterministic", True),
)


@contextlib.contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Context without TF32 and without choices by timing; random states are as before after it.

    Args:
        device: Whose random state it is, beside the CPU's.
    """
    before = [getattr(owner, name) for owner, name, _ in _SWITCHES]
    used = torch.device(device)
    try:
        for owner, name, value in _SWITCHES:
            setattr(owner, name, value)
        with torch.random.fork_rng(devices=[used] if used.type == "cuda" else []):
            yield
    finally:
        for (owner, name, _), value in zip(_SWITCHES, before, strict=True):
            setattr(owner, name, value)
