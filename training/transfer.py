"""Start a run from the weights of a network snapshot."""

import legacy
from dnnlib.util import open_url
from torch_utils.misc import copy_params_and_buffers
from training.transfer_names import OFFICIAL_SNAPSHOTS


def read_snapshot(source):
    """The networks of a snapshot: official name, URL or path.

    Raises:
        OSError: It cannot be read or downloaded.
        pickle.UnpicklingError, ValueError: It is no network snapshot, or not a safe one.
    """
    with open_url(OFFICIAL_SNAPSHOTS.get(source, source)) as file:
        return legacy.load_network_pkl(file)


def load_weights(state, networks):
    """Copy G, D and G_ema by tensor name; tensors that the snapshot lacks stay as they are."""
    for name, net in state.nets().items():
        copy_params_and_buffers(networks[name], net, require_all=False)
