"""How images are made with a generator that takes latents and labels at once: G(z, c)."""

from typing import Any

import torch


class DirectSampler:
    """Fulfils `torch_utils.sampler.Sampler`; w is z and the label, one after the other.

    Args:
        G: Called with z [N, z_dim] and labels [N, c_dim]; has z_dim, c_dim, img_resolution and
            img_channels. Images are made in eval mode, so that nothing in it changes.

    Raises:
        LookupError: The network is no generator.
    """

    def __init__(self, G: Any) -> None:
        self.G = G
        try:
            self.z_dim: int = G.z_dim
            self.c_dim: int = G.c_dim
            self.img_resolution: int = G.img_resolution
            self.img_channels: int = G.img_channels
        except AttributeError as error:
            raise LookupError(f"{type(G).__name__} is no generator") from error
        self.w_shape: tuple[int, ...] = (G.z_dim + G.c_dim,)

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next(self.G.parameters()).device

    def latents(
        self, z: torch.Tensor, c: torch.Tensor, truncation_psi: float = 1.0
    ) -> torch.Tensor:
        """z [N, z_dim], nearer to zero by truncation, and labels c [N, c_dim] as [N, *w_shape]."""
        return torch.cat([z * truncation_psi, c], dim=1)

    def images(
        self, w: torch.Tensor, noise_mode: str = "const", full_precision: bool = False
    ) -> torch.Tensor:
        """Images float32 [N, C, H, W] of latents [N, *w_shape]; there is no noise."""
        training = self.G.training
        self.G.eval()
        try:
            return self.G(w[:, : self.z_dim], w[:, self.z_dim :]).float()
        finally:
            self.G.train(training)

    def renew_noise(self) -> None:
        """There is none."""
