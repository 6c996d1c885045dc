"""Whether all processes of a run hold the same networks, to the bit."""

from collections.abc import Mapping, Sequence

import torch

from dnnlib.errors import UserError
from torch_utils import distributed
from torch_utils.misc import params_and_buffers

CHUNK = 1 << 20  # words at a time: 16 MiB of memory, however large a tensor is
_WORDS = {1: torch.int8, 2: torch.int16}  # by bytes an element


class ConsistencyError(UserError):
    """Processes have come apart; the message names the first tensor that differs, and where."""


def check_consistency(nets: Mapping[str, torch.nn.Module]) -> None:
    """Compare the networks of all processes; they call this together.

    Args:
        nets: Modules by name.

    Raises:
        ConsistencyError: On all of them.
    """
    if distributed.get_world_size() == 1:
        return
    gathered = distributed.gather(checksums(nets))
    if problem := distributed.broadcast_from_rank0(lambda: _difference(gathered or [])):
        raise ConsistencyError(problem)


def checksums(nets: Mapping[str, torch.nn.Module]) -> dict[str, int]:
    """A number for every parameter and buffer, by name, that changes with any bit of it."""
    tensors = {
        f"{net}.{name}": tensor.detach()
        for net, module in nets.items()
        for name, tensor in params_and_buffers(module)
    }
    odd = 2 * torch.arange(CHUNK, device=next(iter(tensors.values())).device) + 1
    found = [_checksum(tensor, odd) for tensor in tensors.values()]
    values = torch.stack(found).tolist()  # waits for the GPU once
    return dict(zip(tensors, values, strict=True))


def _checksum(tensor: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """Words of at most 32 bits weighted by an odd number for each place, modulo 2^64.

    Neither a word that changes nor two that change places can leave it as it is: differences of
    words and of weights are too small for a product of 2^64.
    """
    words = tensor.flatten().view(_WORDS.get(tensor.element_size(), torch.int32))
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].to(torch.int64)
        total += 2 * start * part.sum()
        total += part.mul_(odd[: len(part)]).sum()
    return total


def _difference(gathered: Sequence[Mapping[str, int]]) -> str | None:
    first = gathered[0]
    for name, value in first.items():
        others = [rank for rank, values in enumerate(gathered) if values[name] != value]
        if others:
            ranks = ", ".join(map(str, others))
            return (
                f"the networks of the processes have come apart: {name} of process {ranks} is not "
                "that of process 0, which hints at a faulty GPU or at processes of different "
                "versions; the newest checkpoint is older than that, or as process 0 had it"
            )
    return None
