"""Start a run from the weights of a network snapshot."""

import logging

import legacy
from dnnlib.util import DownloadError, open_url
from torch_utils.misc import copy_params_and_buffers, params_and_buffers
from training.transfer_names import OFFICIAL_SNAPSHOTS

logger = logging.getLogger(__name__)


class TransferError(ValueError):
    """A snapshot that no run can start from; the message is one line that says why."""


def read_snapshot(source):
    """The networks of a snapshot: official name, URL or path.

    Raises:
        TransferError: It cannot be read or downloaded, is no network snapshot, or not a safe one.
    """
    try:
        with open_url(OFFICIAL_SNAPSHOTS.get(source, source)) as file:
            return legacy.load_network_pkl(file)
    except DownloadError as error:
        raise TransferError(f"Cannot use --resume={source}: {error}.") from error
    except OSError as error:
        raise TransferError(f"Cannot read --resume={source}: {error.strerror}.") from error
    except (legacy.UnsafePickleError, ValueError) as error:
        raise TransferError(f"Cannot use --resume={source}: {error}.") from error


def load_weights(state, networks):
    """Copy G, D and G_ema by tensor name; tensors that the snapshot lacks stay as they are.

    Raises:
        TransferError: A tensor has another shape there.
    """
    for name, net in state.nets().items():
        try:
            copy_params_and_buffers(networks[name], net, require_all=False)
        except ValueError as error:
            raise TransferError(
                f"The snapshot of --resume does not fit this run ({name}: {error}); "
                "use its --cfg, and data of its resolution, colours and labels."
            ) from error
        known = dict(params_and_buffers(networks[name]))
        missing = [tensor for tensor, _ in params_and_buffers(net) if tensor not in known]
        if missing:
            logger.info(
                "Not in the snapshot, left as they are: %d tensors of %s", len(missing), name
            )
