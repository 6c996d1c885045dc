"""Network snapshots as files: written for the official repo, too, found by kimg, read safely."""

import copy
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

import legacy
from dnnlib.errors import UserError
from dnnlib.util import DownloadError, atomic_write, first_line, open_url
from torch_utils.sampler import Sampler, sampler_of


class SnapshotError(UserError):
    """A network snapshot cannot be read or used; the message names the option that asked for it."""


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


def read_networks(source: str, option: str, hint: str = "") -> dict[str, Any]:
    """The networks of a snapshot.

    Args:
        source: Path or URL.
        option: What the user wrote, such as "--network=faces.pkl".
        hint: What else there is to say where the file does not exist.

    Returns:
        As `legacy.load_network_pkl`.

    Raises:
        SnapshotError: It cannot be read or downloaded, is no network snapshot, or no safe one.
    """
    try:
        with open_url(source) as file:
            return legacy.load_network_pkl(file)
    except DownloadError as error:
        raise SnapshotError(f"Cannot use {option}: {error}.") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        more = hint if isinstance(error, FileNotFoundError) else ""
        raise SnapshotError(f"Cannot read {option}: {reason}{more}.") from error
    except (legacy.UnsafePickleError, ValueError) as error:
        raise SnapshotError(f"Cannot use {option}: {error}.") from error


def read_sampler(
    source: str, option: str, device: torch.device
) -> tuple[Sampler, dict[str, Any] | None]:
    """The averaged generator of a snapshot, ready to make images.

    Args:
        source: Path or URL.
        option: What the user wrote, such as "--network=faces.pkl".
        device: Where it is to run.

    Returns:
        It, and the snapshot's `training_set_kwargs`.

    Raises:
        SnapshotError: As `read_networks`, or it makes no grey or RGB images.
    """
    networks = read_networks(source, option)
    try:
        sampler = sampler_of(networks["G_ema"].to(device).requires_grad_(False))
    except LookupError:
        sampler = None
    if sampler is None or sampler.img_channels not in (1, 3):
        raise SnapshotError(
            f"Cannot use {option}: its G_ema is no generator of grey or RGB images."
        )
    return sampler, networks["training_set_kwargs"]
