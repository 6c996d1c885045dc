"""Spectral normalisation of the discriminator (Miyato et al. 2018, equation 8).

It goes with D's 3x3 convolutions only. The kernel of such a layer, read as a matrix [O, I * 9], has
spectral norm 1 when it meets the features, whatever the optimizer does to the weight. The norm is
estimated by power iteration: one iteration each time that D runs in training mode, none in eval
mode. Its vectors are buffers, so that they are saved, restored and moved with the network.

Layers that Freeze-D keeps fixed stay as they are, and so are not normalised.
"""

import torch
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from training.networks import Conv2dLayer


class _BeforeGain(torch.nn.Module):
    """Divide by the factor that the layer multiplies its weight with (equalised learning rate)."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, weight):
        return weight / self.gain


def add_spectral_norm(D):
    """Normalise the 3x3 convolutions of a `Discriminator`, in place.

    Its state has other tensors from then on, so weights are loaded before and optimizers are made
    after. It cannot be pickled, see `without_spectral_norm()`. The vectors of the power iteration
    start from torch's global random numbers.
    """
    for layer in [layer for layer in D.modules() if _is_normalised(layer)]:
        spectral_norm(layer, "weight", n_power_iterations=1)
        parametrize.register_parametrization(layer, "weight", _BeforeGain(layer.weight_gain))


def _is_normalised(module):
    if not isinstance(module, Conv2dLayer) or module.weight.shape[2:] != (3, 3):
        return False
    return isinstance(module.weight, torch.nn.Parameter)  # frozen ones are buffers


@torch.no_grad()
def without_spectral_norm(D):
    """The discriminator as snapshots hold it: the same function, normalised weights as plain ones.

    Returns:
        A `Discriminator` on the CPU whose logits are those of `D` in eval mode; `D` itself where
        nothing in it is normalised. `D` does not change.
    """
    if not any(parametrize.is_parametrized(module) for module in D.modules()):
        return D
    with torch.random.fork_rng(devices=[]):  # its initial weights are overwritten
        plain = type(D)(*D.init_args, **D.init_kwargs)
    training = D.training
    D.eval()  # reading a weight in training mode moves the power iteration on
    for name, tensor in plain.state_dict().items():
        owner, _, attribute = name.rpartition(".")
        tensor.copy_(getattr(D.get_submodule(owner), attribute))
    D.train(training)
    return plain.train(training)
