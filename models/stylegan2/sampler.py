"""How images are made with a generator of StyleGAN2: by way of the styles ws."""

import torch

from training.networks import Generator


class StyleGAN2Sampler:
    """Fulfils `torch_utils.sampler.Sampler`; w is ws [num_ws, w_dim], a style for each layer.

    Args:
        G: The generator; making images changes nothing in it.

    Raises:
        LookupError: The network is none.
    """

    def __init__(self, G: torch.nn.Module) -> None:
        if not isinstance(G, Generator):
            raise LookupError(f"{type(G).__name__} is no generator")
        self.G = G
        self.z_dim: int = G.z_dim
        self.c_dim: int = G.c_dim
        self.img_resolution: int = G.img_resolution
        self.img_channels: int = G.img_channels
        self.w_shape: tuple[int, ...] = (G.num_ws, G.w_dim)

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return next(self.G.parameters()).device

    def latents(
        self, z: torch.Tensor, c: torch.Tensor, truncation_psi: float = 1.0
    ) -> torch.Tensor:
        """Styles float32 [N, num_ws, w_dim] of z [N, z_dim] and labels c [N, c_dim]."""
        return self.G.mapping(z, c, truncation_psi=truncation_psi, skip_w_avg_update=True)

    def images(
        self, w: torch.Tensor, noise_mode: str = "const", full_precision: bool = False
    ) -> torch.Tensor:
        """Images float32 [N, C, H, W] of styles [N, num_ws, w_dim]."""
        return self.G.synthesis(w, noise_mode=noise_mode, force_fp32=full_precision)

    def renew_noise(self) -> None:
        """Draw the constant noise of all layers anew, in their order."""
        for name, buffer in self.G.named_buffers():
            if name.endswith("noise_const"):
                buffer.normal_()
