"""What a training run owns and changes: networks, optimizers, counters."""

import copy
from dataclasses import dataclass

import torch

from training.augment import AugmentPipe
from training.networks import Discriminator, Generator
from training.settings.augpipes import augment_kwargs
from training.spectral_norm import add_spectral_norm, without_spectral_norm
from training.transfer import load_weights


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
    lr_factor: float = 1.0  # below one after training has run away once

    def nets(self):
        """The networks by the names they have in a snapshot."""
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    def state_dict(self):
        """Everything of it, as nested dicts of tensors and plain values."""
        return {
            "nimg": self.nimg,
            "iteration": self.iteration,
            "lr_factor": self.lr_factor,
            "networks": {name: net.state_dict() for name, net in self.nets().items()},
            # Learning rates and betas follow from the settings.
            "moments": {
                name: opt.state_dict()["state"] for name, opt in self._optimizers().items()
            },
            "augment_p": None if self.augment_pipe is None else self.augment_pipe.p,
        }

    def load_state_dict(self, state):
        """Go on from `state_dict()`."""
        self.nimg, self.iteration = state["nimg"], state["iteration"]
        self.lr_factor = state["lr_factor"]
        for name, net in self.nets().items():
            net.load_state_dict(state["networks"][name])
        for name, optimizer in self._optimizers().items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state["moments"][name], "param_groups": groups})
        if self.augment_pipe is not None:
            self.augment_pipe.p.copy_(state["augment_p"])

    def _optimizers(self):
        return {"G": self.G_opt, "D": self.D_opt}

    def nets_of_snapshot(self):
        """What a snapshot holds of `nets()`: of a spectrally normalised D, a plain copy."""
        return self.nets() | {"D": without_spectral_norm(self.D)}


def create_state(config, dataset, device, resume=None):
    """Networks and fresh optimizers for `config` and the data set's channels and labels.

    Args:
        config: The `TrainingConfig`.
        dataset: Has resolution, num_channels and label_dim.
        device: Where training happens.
        resume: Networks of a snapshot (`legacy.load_network_pkl`) to start from, or None.

    Raises:
        TransferError: The snapshot does not fit.
    """
    G, D = _generator(config, dataset), _discriminator(config, dataset)
    G = G.train().requires_grad_(False).to(device)
    D = D.train().requires_grad_(False).to(device)
    G_ema = copy.deepcopy(G).eval()
    if resume is not None:
        load_weights({"G": G, "D": D, "G_ema": G_ema}, resume)
    if config.sn:
        add_spectral_norm(D)
    lr_g, lr_d = config.learning_rates
    return TrainingState(
        G=G,
        D=D,
        G_ema=G_ema,
        G_opt=_adam(G, lr_g, config.lazy_ratio(config.g_reg_interval)),
        D_opt=_adam(D, lr_d, config.lazy_ratio(config.d_reg_interval)),
        augment_pipe=_augment_pipe(config, device),
    )


def _generator(config, dataset):
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


def _discriminator(config, dataset):
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


def _half_precision(config):
    """Arguments of the blocks; of these, half_dtype is ours alone and left out where it can be."""
    dtype = dict(half_dtype="bfloat16") if config.precision == "bf16" else {}
    return dict(fp16_channels_last=config.nhwc, **dtype)


def _augment_pipe(config, device):
    if config.aug == "noaug":
        return None
    pipe = AugmentPipe(**augment_kwargs(config.augpipe)).train().requires_grad_(False)
    pipe.p.fill_(0.0 if config.p is None else config.p)
    return pipe.to(device)


def _adam(net, lr, ratio):
    return torch.optim.Adam(net.parameters(), lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)
