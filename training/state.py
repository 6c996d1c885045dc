"""What a training run owns and changes: networks, optimizers, counters."""

import copy
from dataclasses import dataclass

import torch

from training.augment import AugmentPipe
from training.augpipes import augment_kwargs
from training.config import CHANNEL_BASE
from training.networks import Discriminator, Generator


@dataclass
class TrainingState:
    """Networks on their device, one Adam each, augmentations or None, and how far the run is."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    G_opt: torch.optim.Adam
    D_opt: torch.optim.Adam
    augment_pipe: AugmentPipe | None = None
    nimg: int = 0  # real images seen
    iteration: int = 0

    def nets(self):
        """The networks by the names they have in a snapshot."""
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}


def create_state(config, dataset, device):
    """Fresh networks and optimizers for `config` and the data set's channels and labels."""
    G = Generator(
        z_dim=config.z_dim,
        c_dim=dataset.label_dim,
        w_dim=config.w_dim,
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
        mapping_kwargs=dict(num_layers=config.mapping_layers),
        synthesis_kwargs=dict(
            architecture=config.g_arch,
            channel_base=round(config.g_scale * CHANNEL_BASE),
            channel_max=config.channel_max,
            num_fp16_res=config.num_half_res,
            conv_clamp=config.conv_clamp,
            fp16_channels_last=config.nhwc,
        ),
    )
    D = Discriminator(
        c_dim=dataset.label_dim,
        img_resolution=dataset.resolution,
        img_channels=dataset.num_channels,
        architecture=config.d_arch,
        channel_base=round(config.d_scale * CHANNEL_BASE),
        channel_max=config.channel_max,
        num_fp16_res=config.num_half_res,
        conv_clamp=config.conv_clamp,
        block_kwargs=dict(freeze_layers=config.freezed, fp16_channels_last=config.nhwc),
        epilogue_kwargs=dict(mbstd_group_size=config.mbstd_group),
    )
    G = G.train().requires_grad_(False).to(device)
    D = D.train().requires_grad_(False).to(device)
    lr_g, lr_d = config.learning_rates
    return TrainingState(
        G=G,
        D=D,
        G_ema=copy.deepcopy(G).eval(),
        G_opt=_adam(G, lr_g, config.lazy_ratio(config.g_reg_interval)),
        D_opt=_adam(D, lr_d, config.lazy_ratio(config.d_reg_interval)),
        augment_pipe=_augment_pipe(config, device),
    )


def _augment_pipe(config, device):
    if config.aug == "noaug":
        return None
    pipe = AugmentPipe(**augment_kwargs(config.augpipe)).train().requires_grad_(False)
    pipe.p.fill_(0.0 if config.p is None else config.p)
    return pipe.to(device)


def _adam(net, lr, ratio):
    return torch.optim.Adam(net.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)
