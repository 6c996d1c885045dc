"""What StyleGAN2 trains, and with what: networks, optimizers, augmentations."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from models.stylegan2.settings import StyleGAN2Config
from training.ada import AdaController
from training.augment import AugmentPipe
from training.networks import Discriminator, Generator
from training.settings.augpipes import augment_kwargs
from training.spectral_norm import add_spectral_norm
from training.transfer import load_weights


class Parts(NamedTuple):
    """Networks on their device, an optimizer for each, augmentations and their controller."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    G_opt: torch.optim.Adam
    D_opt: torch.optim.Adam
    augment_pipe: AugmentPipe | None  # None: no augmentation
    ada: AdaController | None  # None: its probability stands still

    @property
    def nets(self) -> dict[str, torch.nn.Module]:
        """The networks by name."""
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers by the name of their network."""
        return {"G": self.G_opt, "D": self.D_opt}


def build_parts(
    config: StyleGAN2Config,
    dataset: Any,
    device: torch.device,
    networks: Mapping[str, Any] | None = None,
) -> Parts:
    """Parts for the settings and the data set's resolution, channels and labels.

    Args:
        config: The settings.
        dataset: The opened data set.
        device: Where training happens.
        networks: Of a snapshot to start from, or None.

    Raises:
        TransferError: The snapshot does not fit.
    """
    G, D = build_generator(config, dataset), build_discriminator(config, dataset)
    G = G.train().requires_grad_(False).to(device)
    D = D.train().requires_grad_(False).to(device)
    G_ema = copy.deepcopy(G).eval()
    if networks is not None:
        load_weights({"G": G, "D": D, "G_ema": G_ema}, networks)
    if config.sn:
        add_spectral_norm(D)
    lr_g, lr_d = config.learning_rates
    G_opt = build_adam(G, lr_g, config.lazy_ratio(config.g_reg_interval))
    D_opt = build_adam(D, lr_d, config.lazy_ratio(config.d_reg_interval))
    pipe = build_augment_pipe(config, device)
    ada = None
    if config.aug == "ada" and pipe is not None:
        ada = AdaController(pipe.p, target=config.target, kimg=config.ada_kimg)
    return Parts(G, D, G_ema, G_opt, D_opt, pipe, ada)


def build_generator(config: StyleGAN2Config, dataset: Any) -> Generator:
    """G for the resolution, channels and labels of the data set, as initialised."""
    return Generator(
        z_dim=config.z_dim,
        c_dim=dataset.label_dim,
        w_dim=config.w_dim,
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
        mapping_kwargs=dict(num_layers=config.mapping_layers),
        synthesis_kwargs=dict(
            architecture=config.g_arch,
            channel_base=config.channel_bases[0],
            channel_max=config.channel_max,
            num_fp16_res=config.num_half_res,
            conv_clamp=config.conv_clamp,
            **_half_precision(config),
        ),
    )


def build_discriminator(config: StyleGAN2Config, dataset: Any) -> Discriminator:
    """D for the resolution, channels and labels of the data set, as initialised."""
    return Discriminator(
        c_dim=dataset.label_dim,
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
        architecture=config.d_arch,
        channel_base=config.channel_bases[1],
        channel_max=config.channel_max,
        num_fp16_res=config.num_half_res,
        conv_clamp=config.conv_clamp,
        block_kwargs=dict(freeze_layers=config.freezed, **_half_precision(config)),
        epilogue_kwargs=dict(mbstd_group_size=config.mbstd_group),
    )


def _half_precision(config: StyleGAN2Config) -> dict[str, Any]:
    """Arguments of the blocks; of these, half_dtype is ours alone and left out where it can be."""
    dtype = dict(half_dtype="bfloat16") if config.precision == "bf16" else {}
    return dict(fp16_channels_last=config.nhwc, **dtype)


def build_augment_pipe(config: StyleGAN2Config, device: torch.device) -> AugmentPipe | None:
    """Augmentations of the adversarial stage, at their first probability; None: there are none."""
    if config.aug == "noaug":
        return None
    pipe = AugmentPipe(**augment_kwargs(config.augpipe)).train().requires_grad_(False)
    pipe.p.fill_(0.0 if config.p is None else config.p)
    return pipe.to(device)


def build_adam(net: torch.nn.Module, lr: float, ratio: float) -> torch.optim.Adam:
    """Adam with the correction of lr and betas for lazy regularisation (StyleGAN2, appendix B)."""
    return torch.optim.Adam(net.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)
