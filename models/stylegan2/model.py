"""StyleGAN2 as a run sees it: what it trains, with what, and what follows an iteration."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from models.grid_preview import GridPreview
from models.latent_batches import LatentBatches
from models.stylegan2.parts import build_parts
from models.stylegan2.sampler import StyleGAN2Sampler
from models.stylegan2.settings import StyleGAN2Config
from models.stylegan2.stages import build_adversarial_loss, build_stages
from torch_utils.distributed import all_reduce_mean
from training.ada import UPDATE_INTERVAL
from training.ema import ema_decay, update_ema
from training.model import Progress
from training.spectral_norm import without_spectral_norm
from training.stages import MicroBatch, Phase, Report, Stage


class StyleGAN2Model:
    """Fulfils `training.model.Model`.

    Args:
        config: The `StyleGAN2Config`.
        dataset: The opened data set.
        device: Where training happens.
        report: Takes the statistics of training.
        networks: Of a snapshot to start from, or None.

    Raises:
        TransferError: The snapshot does not fit.
    """

    def __init__(
        self,
        config: StyleGAN2Config,
        dataset: Any,
        device: torch.device,
        report: Report,
        networks: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = config
        self.parts = parts = build_parts(config, dataset, device, networks)
        self.nets, self.optimizers = parts.nets, parts.optimizers
        self.loss = build_adversarial_loss(config, parts, report)
        self.stages = build_stages(config, parts, self.loss, report)
        self._batches = LatentBatches(config, dataset, config.z_dim, device)
        self.preview = GridPreview(
            dataset,
            averaged=StyleGAN2Sampler(parts.G_ema),
            current=StyleGAN2Sampler(parts.G),
            seed=config.seed,
            batch=config.batch_gpu,
        )

    @property
    def generator(self) -> torch.nn.Module:
        """The averaged G."""
        return self.parts.G_ema

    def micro_batches(
        self, phase: Phase, images: torch.Tensor, labels: torch.Tensor
    ) -> list[MicroBatch]:
        """Parts of `images` [N, C, H, W] and `labels` [N, c_dim], with latents and labels drawn."""
        return self._batches.split(images, labels)

    def after_iteration(self, stage: Stage, stepped: AbstractSet[str], progress: Progress) -> None:
        """Move G's averages, where G has moved, and ADA's probability."""
        config = self._config
        if "G" in stepped:
            all_reduce_mean(self.parts.G.mapping.w_avg)  # each process has seen other latents
            decay = ema_decay(config.batch, progress.nimg, config.ema_kimg, config.ema_rampup)
            update_ema(self.parts.G_ema, self.parts.G, decay)
        fourth = (progress.iteration + 1) % UPDATE_INTERVAL == 0
        if self.parts.ada is not None and stage.adaptive and fourth:
            self.parts.ada.update(config.batch * UPDATE_INTERVAL)

    def tick_values(self) -> dict[str, float]:
        """The probability of augmentations."""
        pipe = self.parts.augment_pipe
        return {"Progress/augment": 0.0 if pipe is None else pipe.p.item()}

    def snapshot(self) -> dict[str, torch.nn.Module | None]:
        """The networks; of a spectrally normalised D, a plain copy."""
        return {
            **self.nets,
            "D": without_spectral_norm(self.parts.D),
            "augment_pipe": self.parts.augment_pipe,
        }

    def state_dict(self) -> dict[str, Any]:
        """Augmentations, ADA's observations and the mean of path lengths."""
        return {
            "augment_p": None if self.parts.augment_pipe is None else self.parts.augment_pipe.p,
            "ada": None if self.parts.ada is None else self.parts.ada.state_dict(),
            "loss": self.loss.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        if self.parts.augment_pipe is not None:
            self.parts.augment_pipe.p.copy_(state["augment_p"])
        if self.parts.ada is not None:
            self.parts.ada.load_state_dict(state["ada"])
        self.loss.load_state_dict(state["loss"])
