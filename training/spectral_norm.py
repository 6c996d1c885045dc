"""Spectral normalisation of the discriminator (Miyato et al. 2018, equation 8).

It goes with D's 3x3 convolutions only. The kernel of such a layer, read as a matrix [O, I * 9], has
spectral norm 1 when it meets the features, whatever the optimizer does to the weight. The norm is
estimated by power iteration: one iteration each time that D runs in training mode, none in eval
mode. Its vectors are buffers, so that they are saved, restored and moved with the network.

Layers that Freeze-D keeps fixed stay as they are, and so are not normalised.
"""

from typing import Any

import torch
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from training.networks import Conv2dLayer, Discriminator


class _BeforeGain(torch.nn.Module):
    """Divide by the factor that the layer multiplies its weight with (equalised learning rate)."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / self.gain


def add_spectral_norm(D: Discriminator) -> None:
    """Normalise the 3x3 convolutions of a `Discriminator`, in place.

    Its state has other tensors from then on, so weights are loaded before and optimizers are made
    after. It cannot be pickled, see `without_spectral_norm()`. The vectors of the power iteration
    start from torch's global random numbers.
    """
    layers = [module for module in D.modules() if isinstance(module, Conv2dLayer)]
    for layer in filter(_is_normalised, layers):
        spectral_norm(layer, "weight", n_power_iterations=1)
        parametrize.register_parametrization(layer, "weight", _BeforeGain(layer.weight_gain))


def _is_normalised(layer: Conv2dLayer) -> bool:
    is_trained = isinstance(layer.weight, torch.nn.Parameter)  # frozen ones are buffers
    return is_trained and layer.weight.shape[2:] == (3, 3)


@torch.no_grad()
def without_spectral_norm(D: Discriminator) -> Discriminator:
    """The discriminator as snapshots hold it: the same function, normalised weights as plain ones.

    Returns:
        A `Discriminator` on the CPU whose logits are those of `D` in eval mode; `D` itself where
        nothing in it is normalised. `D` does not change.
    """
    if not any(parametrize.is_parametrized(module) for module in D.modules()):
        return D
    with torch.random.fork_rng(devices=[]):  # its initial weights are overwritten
        made_as: Any = D  # persistent_class() keeps its arguments
        plain = type(D)(*made_as.init_args, **made_as.init_kwargs)
    training = D.training
    D.eval()  # reading a weight in training mode steps the power iteration
    for name, tensor in plain.state_dict().items():
        owner, _, attribute = name.rpartition(".")
        tensor.copy_(getattr(D.get_submodule(owner), attribute))
    D.train(training)
    return plain.train(training)
