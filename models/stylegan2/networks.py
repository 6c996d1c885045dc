"""Networks, augmentations and optimizers of StyleGAN2 as settings and a data set ask for."""

from typing import TYPE_CHECKING, Any

import torch

from training.augment import AugmentPipe
from training.networks import Discriminator, Generator
from training.settings.augpipes import augment_kwargs

if TYPE_CHECKING:
    from models.stylegan2.settings import StyleGAN2Config


def build_generator(config: "StyleGAN2Config", dataset: Any) -> Generator:
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


def build_discriminator(config: "StyleGAN2Config", dataset: Any) -> Discriminator:
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


def _half_precision(config: "StyleGAN2Config") -> dict[str, Any]:
    """Arguments of the blocks; of these, half_dtype is ours alone and left out where it can be."""
    dtype = dict(half_dtype="bfloat16") if config.precision == "bf16" else {}
    return dict(fp16_channels_last=config.nhwc, **dtype)


def build_augment_pipe(config: "StyleGAN2Config", device: torch.device) -> AugmentPipe | None:
    """Augmentations of the adversarial stage, at their first probability; None: there are none."""
    if config.aug == "noaug":
        return None
    pipe = AugmentPipe(**augment_kwargs(config.augpipe)).train().requires_grad_(False)
    pipe.p.fill_(0.0 if config.p is None else config.p)
    return pipe.to(device)


def build_adam(net: torch.nn.Module, lr: float, ratio: float) -> torch.optim.Adam:
    """Adam with the correction of lr and betas for lazy regularisation (StyleGAN2, appendix B)."""
    return torch.optim.Adam(net.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)
