"""A G and a D with nothing special: the model of a family that brings networks and a loss alone."""

import copy
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from models.coop_loss import build_coop_loss
from models.direct_sampler import DirectSampler
from models.grid_preview import GridPreview
from models.latent_batches import LatentBatches
from training.ema import update_ema
from training.model import Progress, Stages
from training.settings.config import TrainingConfig
from training.stages import Loss, MicroBatch, Phase, Report, Stage
from training.transfer import load_weights

BETAS = (0.0, 0.99)  # of Adam, as in StyleGAN2
EMA_DECAY = 0.999


class PlainGAN:
    """Fulfils `training.model.Model`: Adam for each network, and a moving average of G.

    Args:
        config: Settings of the run.
        dataset: The opened data set.
        device: Where training happens.
        G: Called with z [N, z_dim] and labels [N, c_dim]; see `DirectSampler`.
        D: Called with images [N, C, H, W] and labels.
        loss: Of the adversarial stage, whose phases are Gmain and Dmain.
        report: Takes the statistics of training.
        networks: Of a snapshot to start from, or None.

    Raises:
        TransferError: The snapshot does not fit.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Any,
        device: torch.device,
        *,
        G: torch.nn.Module,
        D: torch.nn.Module,
        loss: Loss,
        report: Report,
        networks: Mapping[str, Any] | None = None,
    ) -> None:
        G, D = (net.train().requires_grad_(False).to(device) for net in (G, D))
        self.nets = {"G": G, "D": D, "G_ema": copy.deepcopy(G).eval()}
        if networks is not None:
            load_weights(self.nets, networks)
        rates = dict(zip("GD", config.learning_rates, strict=True))
        coop_rates = dict(zip("GD", config.coop_learning_rates, strict=True))
        self.optimizers = {
            name: torch.optim.Adam(self.nets[name].parameters(), lr=rate, betas=BETAS)
            for name, rate in rates.items()
        }
        phases = tuple(
            Phase(f"{name}main", {name: self.nets[name]}, (self.optimizers[name],)) for name in "GD"
        )
        cooperative = None
        if config.coop_kimg > 0:
            coop_loss = build_coop_loss(config, G, D, report)
            cooperative = Stage("cooperative", "Coop", coop_loss, phases, coop_rates)
        self.stages = Stages(cooperative, Stage("adversarial", "Loss", loss, phases, rates))
        averaged, current = DirectSampler(self.nets["G_ema"]), DirectSampler(G)
        self._batches = LatentBatches(config, dataset, current.z_dim, device)
        self.preview = GridPreview(
            dataset, averaged=averaged, current=current, seed=config.seed, batch=config.batch_gpu
        )

    @property
    def generator(self) -> torch.nn.Module:
        """The averaged G."""
        return self.nets["G_ema"]

    def micro_batches(
        self, phase: Phase, images: torch.Tensor, labels: torch.Tensor
    ) -> list[MicroBatch]:
        """Parts of `images` [N, C, H, W] and `labels` [N, c_dim], with latents and labels drawn."""
        return self._batches.split(images, labels)

    def after_iteration(self, stage: Stage, stepped: AbstractSet[str], progress: Progress) -> None:
        """Move the average where G has moved."""
        if "G" in stepped:
            update_ema(self.nets["G_ema"], self.nets["G"], EMA_DECAY)

    def tick_values(self) -> dict[str, float]:
        """Nothing beside what all models report."""
        return {}

    def snapshot(self) -> dict[str, torch.nn.Module | None]:
        """The networks."""
        return {**self.nets, "augment_pipe": None}

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside networks and optimizers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to restore."""
