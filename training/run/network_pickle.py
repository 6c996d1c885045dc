"""Network snapshots: pickles that this project and the official repo read, numbered by kimg."""

import copy
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from dnnlib.util import atomic_write


def save_snapshot(
    path: str | PathLike,
    *,
    training_set_kwargs: Mapping[str, Any],
    **networks: torch.nn.Module | None,
) -> None:
    """Write a network snapshot: a pickle that legacy.load_network_pkl() and the official repo read.

    The networks are saved as CPU copies in eval mode, float32, without requires_grad; the given
    ones are not changed. The file replaces an older one of that name only when it is complete.

    Args:
        path: The file to write.
        G, D, G_ema: Networks, instances of persistent classes.
        augment_pipe: Likewise, or None.
        training_set_kwargs: Plain data from which the official tools build their data set.

    Raises:
        OSError: The file cannot be written.
    """
    data: dict[str, Any] = {
        name: None if net is None else _frozen_copy(net) for name, net in networks.items()
    }
    data["training_set_kwargs"] = dict(training_set_kwargs)
    with atomic_write(path) as file:
        # Protocol 4 is the newest that Python 3.7, which the official repo asks for, can read.
        pickle.dump(data, file, protocol=4)


def find_snapshots(run_dir: str | PathLike) -> list[Path]:
    """All `network-snapshot-*.pkl` of a run folder, the newest last."""
    found = Path(run_dir).glob("network-snapshot-*.pkl")
    # By length first: from 1,000,000 kimg on, names are longer and numbers have no zeros in front.
    return sorted(found, key=lambda path: (len(path.name), path.name))


def remove_old_snapshots(
    run_dir: str | PathLike, keep: int, spare: str | PathLike | None = None
) -> None:
    """Remove all `network-snapshot-*.pkl` of a run folder except the `keep` newest and `spare`."""
    for path in find_snapshots(run_dir)[:-keep]:
        if spare is None or path != Path(spare):
            path.unlink(missing_ok=True)


def _frozen_copy(module: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(False).float().cpu()
