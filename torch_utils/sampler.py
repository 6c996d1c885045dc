"""What makes images with a generator of any family."""

from typing import Protocol

import torch

from dnnlib import families


class Sampler(Protocol):
    """Makes images with a generator of any family, in two steps: latents w, then images of them.

    The space of w is the one in which paths are straight and projected latents lie. Members are
    read-only; a copy (`copy.deepcopy`) shares nothing with the original.
    """

    @property
    def z_dim(self) -> int:
        """Length of z."""
        ...

    @property
    def c_dim(self) -> int:
        """Length of a label; 0: the generator is unconditional."""
        ...

    @property
    def img_resolution(self) -> int:
        """Height and width of the images in pixels."""
        ...

    @property
    def img_channels(self) -> int:
        """Channels of the images."""
        ...

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of the w of one image."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the generator is, and its inputs must be."""
        ...

    def latents(
        self, z: torch.Tensor, c: torch.Tensor, truncation_psi: float = 1.0
    ) -> torch.Tensor:
        """The w of latents and labels.

        Args:
            z: float32 [N, z_dim], from a standard normal distribution.
            c: float32 [N, c_dim]; one-hot for classes.
            truncation_psi: 1 is no truncation, 0 gives the same w for every z.

        Returns:
            float32 tensor [N, *w_shape].
        """
        ...

    def images(
        self, w: torch.Tensor, noise_mode: str = "const", full_precision: bool = False
    ) -> torch.Tensor:
        """The images of latents.

        Args:
            w: float32 [N, *w_shape].
            noise_mode: Noise inputs, for a generator that has them: random, const or none.
            full_precision: Compute in float32 throughout, where half precision would drown the
                difference between neighbours.

        Returns:
            float32 tensor [N, img_channels, img_resolution, img_resolution], nominally in [-1, 1]
            and not clamped.
        """
        ...

    def renew_noise(self) -> None:
        """Draw the constant noise anew, if there is any; do it to a copy."""
        ...


def sampler_of(network: object) -> Sampler:
    """What makes images with a generator.

    Args:
        network: A generator of any family, which is not changed.

    Raises:
        LookupError: The network belongs to no family, or is no generator.
    """
    return families.load(families.FAMILIES[families.family_of(network)].sampler)(network)
