"""Start a run from the weights of a network snapshot."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from dnnlib.errors import UserError
from torch_utils.misc import params_and_buffers
from training.run.snapshot_file import read_networks
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS

logger = logging.getLogger(__name__)

MAX_ROWS = 40  # of the table of what does not fit; more tell no more than a count


class TransferError(UserError):
    """A snapshot whose networks do not fit a run; the message is one line that says why."""


def read_snapshot(source: str) -> dict[str, Any]:
    """The networks of the snapshot that --resume names.

    Args:
        source: Official name, URL or path.

    Returns:
        As `legacy.load_network_pkl`.

    Raises:
        SnapshotError: It cannot be read or downloaded, is no network snapshot, or no safe one.
    """
    return read_networks(
        OFFICIAL_SNAPSHOTS.get(source, source),
        f"--resume={source}",
        hint=f"; give a path, a URL or one of {', '.join(OFFICIAL_SNAPSHOTS)}",
    )


@torch.no_grad()
def load_weights(
    nets: Mapping[str, torch.nn.Module], networks: Mapping[str, torch.nn.Module]
) -> None:
    """Copy every tensor that has the same name and shape in both; the others stay as they are.

    How many were copied is logged, and a table of those that were not.

    Args:
        nets: The modules of this run, by name; written in place.
        networks: Those of the snapshot.

    Raises:
        TransferError: A network is missing in the snapshot, or no layer of it fits; nothing is
            copied.
    """
    if missing := [name for name in nets if networks.get(name) is None]:
        raise TransferError(f"The snapshot of --resume holds no {', '.join(missing)}.")
    pairs = {name: (_tensors(networks[name]), _tensors(net)) for name, net in nets.items()}
    shared = {name: _fitting(*pair) for name, pair in pairs.items()}
    _require_use(shared)
    for name, (there, here) in pairs.items():
        for tensor in shared[name]:
            here[tensor].copy_(there[tensor])
    counts = [f"{len(shared[name])} of {len(here)} of {name}" for name, (_, here) in pairs.items()]
    logger.info("Tensors loaded from the snapshot of --resume: %s.", ", ".join(counts))
    if table := _table({name: _misfits(*pair) for name, pair in pairs.items()}):
        logger.info(
            "What does not fit is left out of it, and stays as initialised here:\n%s", table
        )


def _tensors(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(params_and_buffers(net))


def _fitting(there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]) -> list[str]:
    return [name for name in here if name in there and there[name].shape == here[name].shape]


def _require_use(shared: Mapping[str, Iterable[str]]) -> None:
    """Some biases fit anything, and a mapping network is no use without the layers behind it."""
    lacking = [
        name
        for name, tensors in shared.items()
        if not any(t.endswith(".weight") and not t.startswith("mapping.") for t in tensors)
    ]
    if lacking:
        raise TransferError(
            f"The snapshot of --resume does not fit this run: apart from the mapping, no layer of "
            f"{', '.join(lacking)} has its shape; use its --g-scale, --d-scale and --channel-max."
        )


def _misfits(
    there: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]
) -> list[tuple[str, str, str]]:
    """Rows (tensor, shape there, shape here) of what was not copied; "-" where it is missing.

    What belongs to a part of the network that one side lacks makes one row, with a count.
    """
    rows = [
        (name, _shape(there[name]), _shape(here[name]))
        for name in here
        if name in there and there[name].shape != here[name].shape
    ]
    rows += [(part, "-", size) for part, size in _lacking(here, there)]
    return rows + [(part, size, "-") for part, size in _lacking(there, here)]


def _lacking(
    tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, str]]:
    """(name, shape) or (part.*, count) of the tensors that `others` has not."""
    prefixes = {prefix for name in others for prefix in _prefixes(name)}
    parts: dict[str, list[str]] = {}
    for name in tensors:
        if name not in others:
            unknown = (f"{prefix}.*" for prefix in _prefixes(name) if prefix not in prefixes)
            parts.setdefault(next(unknown, name), []).append(name)
    for part, names in parts.items():
        if len(names) == 1:
            yield names[0], _shape(tensors[names[0]])
        else:
            yield part, f"{len(names)} tensors"


def _prefixes(name: str) -> list[str]:
    """a, a.b for a.b.c: the modules that a tensor lies in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _shape(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


def _table(rows: Mapping[str, Sequence[tuple[str, str, str]]]) -> str:
    """Text of rows by network, in aligned columns; networks with the same rows share them."""
    owners: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for name, own in rows.items():
        owners.setdefault(tuple(own), []).append(name)
    lines = [(", ".join(names), *row) for own, names in owners.items() for row in own]
    if not lines:
        return ""
    shown = [("network", "tensor", "snapshot", "this run"), *lines[:MAX_ROWS]]
    widths = [max(len(cell) for cell in column) for column in zip(*shown, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in shown
    ]
    if len(lines) > MAX_ROWS:
        text.append(f"... and {len(lines) - MAX_ROWS} more")
    return "\n".join(text)
