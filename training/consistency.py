"""Whether all processes of a run hold the same networks, to the bit."""

import torch

from torch_utils.misc import params_and_buffers


class ConsistencyError(RuntimeError):
    """Processes have come apart; the message names the first tensor that differs, and where."""


def check_consistency(processes, nets):
    """Compare the networks of all processes; they call this together.

    Args:
        processes: Which of them this is.
        nets: Modules by name.

    Raises:
        ConsistencyError: On all of them.
    """
    if processes.count == 1:
        return
    gathered = processes.gather(checksums(nets))
    if problem := processes.share(_difference(gathered) if processes.first else None):
        raise ConsistencyError(problem)


def checksums(nets):
    """A number for every parameter and buffer, by name, that changes with any bit of it."""
    found = {
        f"{net}.{name}": _checksum(tensor)
        for net, module in nets.items()
        for name, tensor in params_and_buffers(module)
    }
    values = torch.stack(list(found.values())).tolist()  # waits for the GPU once
    return dict(zip(found, values, strict=True))


def _checksum(tensor):
    """Bytes weighted by an odd number for each place, modulo 2^64; swapped ones show, too."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8).to(torch.int64)
    return (data * (2 * torch.arange(len(data), device=data.device) + 1)).sum()


def _difference(gathered):
    first = gathered[0]
    for name, value in first.items():
        others = [rank for rank, values in enumerate(gathered) if values[name] != value]
        if others:
            ranks = ", ".join(map(str, others))
            return (
                f"the networks of the processes have come apart: {name} of process {ranks} is not "
                "that of process 0, which hints at a faulty GPU or at processes of different "
                "versions; the newest training state is older than that, or as process 0 had it"
            )
    return None
