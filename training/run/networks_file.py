"""Network snapshots by path or URL; whatever is wrong with one ends in one line."""

from typing import Any

import torch

import legacy
from dnnlib.errors import UserError
from dnnlib.util import DownloadError, first_line, open_url
from torch_utils.sampler import Sampler, sampler_of


class NetworksFileError(UserError):
    """A network snapshot cannot be read or used; the message names the option that asked for it."""


def read_networks(source: str, option: str, hint: str = "") -> dict[str, Any]:
    """The networks of a snapshot.

    Args:
        source: Path or URL.
        option: What the user wrote, such as "--network=faces.pkl".
        hint: What else there is to say where the file does not exist.

    Returns:
        As `legacy.load_network_pkl`.

    Raises:
        NetworksFileError: It cannot be read or downloaded, is no network snapshot, or no safe one.
    """
    try:
        with open_url(source) as file:
            return legacy.load_network_pkl(file)
    except DownloadError as error:
        raise NetworksFileError(f"Cannot use {option}: {error}.") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        more = hint if isinstance(error, FileNotFoundError) else ""
        raise NetworksFileError(f"Cannot read {option}: {reason}{more}.") from error
    except (legacy.UnsafePickleError, ValueError) as error:
        raise NetworksFileError(f"Cannot use {option}: {error}.") from error


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
        NetworksFileError: As `read_networks`, or it makes no grey or RGB images.
    """
    networks = read_networks(source, option)
    try:
        sampler = sampler_of(networks["G_ema"].to(device).requires_grad_(False))
    except LookupError:
        sampler = None
    if sampler is None or sampler.img_channels not in (1, 3):
        raise NetworksFileError(
            f"Cannot use {option}: its G_ema is no generator of grey or RGB images."
        )
    return sampler, networks["training_set_kwargs"]
