"""How images are made with a generator of StyleGAN2."""

import torch

from training.networks import Generator


class StyleGAN2Sampler:
    """Fulfils `training.model.Sampler`; making images changes nothing in the generator."""

    def __init__(self, G: Generator) -> None:
        self.G = G
        self.z_dim, self.c_dim = G.z_dim, G.c_dim
        self.img_resolution, self.img_channels = G.img_resolution, G.img_channels

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    def latents(self, z: torch.Tensor, c: torch.Tensor, truncation_psi: float = 1) -> torch.Tensor:
        return self.G.mapping(z, c, truncation_psi=truncation_psi, skip_w_avg_update=True)

    def images(self, w: torch.Tensor, noise_mode: str = "const") -> torch.Tensor:
        return self.G.synthesis(w, noise_mode=noise_mode)
