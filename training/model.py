"""The seam between a run and a family of networks: all that the loop knows of either.

A family is a class that fulfils `Model`, its settings (`training.settings.config.TrainingConfig`)
and a line in `dnnlib/families.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple, Protocol

import torch

from dnnlib import families
from training.stages import MicroBatch, Phase, Report, Stage


@dataclass
class Progress:
    """How far a run is."""

    nimg: int = 0  # real images seen
    iteration: int = 0
    lr_factor: float = 1.0  # below one after training has run away once


class Stages(NamedTuple):
    """The two stages of a run, over the same networks and optimizers."""

    cooperative: Stage | None
    adversarial: Stage


class Preview(Protocol):
    """Pictures of a run, always of the same latents, labels or inputs; making them changes nothing.

    `damage` holds what is wrong with images of the data set that should have been in them.
    """

    damage: list[str]

    def save_reals(self, path: str | PathLike) -> None:
        """Write the picture of real images."""
        ...

    def save_fakes(self, path: str | PathLike) -> None:
        """Write the picture of what the averaged generator makes now."""
        ...

    def diversity(self) -> float:
        """How much generated images differ from each other, compared with real ones; 0: not."""
        ...


class Model(Protocol):
    """One family of networks, and how it is trained.

    `nets` are all its networks by name, whose tensors are saved and compared between processes;
    `optimizers` are by name, too. Whatever else decides how training continues is in
    `state_dict()`, which all processes call together.
    """

    nets: Mapping[str, torch.nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    stages: Stages
    preview: Preview

    @property
    def generator(self) -> torch.nn.Module:
        """What generates and is measured: G_ema of a snapshot."""
        ...

    def micro_batches(
        self, phase: Phase, images: torch.Tensor, labels: torch.Tensor
    ) -> Sequence[MicroBatch]:
        """What `phase` sees of a batch of this process, in parts that fit into memory.

        Args:
            phase: The phase that is due.
            images: Real images [N, C, H, W] float32 in [-1, 1].
            labels: Their labels [N, c_dim] float32.
        """
        ...

    def after_iteration(self, stage: Stage, stepped: AbstractSet[str], progress: Progress) -> None:
        """Move averages and controllers, once the phases have run.

        Args:
            stage: The stage they belong to.
            stepped: Names of the networks that took a step; what follows a network stands still
                when it did.
            progress: Before this iteration is counted.
        """
        ...

    def tick_values(self) -> Mapping[str, float]:
        """Numbers to report at a tick, by name; Progress/augment is in the status line.

        Rank 0 alone asks for them, as for pictures and snapshots.
        """
        ...

    def snapshot(self) -> Mapping[str, torch.nn.Module | None]:
        """What a network snapshot holds; G_ema is what generates, and what is measured."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What decides how training continues, beside networks and optimizers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        ...


def build_model(
    config: Any,
    dataset: Any,
    device: torch.device,
    report: Report,
    networks: Mapping[str, Any] | None = None,
) -> Model:
    """The model of the family that `config` is for, with fresh optimizers.

    Args:
        config: The `TrainingConfig` of the family.
        dataset: The opened data set.
        device: Where training happens.
        report: Takes the statistics of training.
        networks: Of a snapshot (`legacy.load_network_pkl`) to start from, or None.

    Raises:
        TransferError: The snapshot does not fit.
    """
    make: Callable[..., Model] = families.load(families.FAMILIES[config.family].model)
    return make(config, dataset, device, report, networks)


class TrainingState:
    """What a run owns and changes: the model, and how far it is."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.progress = Progress()

    def networks(self) -> dict[str, Any]:
        """The networks and how far they have been trained, as the same parts of `state_dict()`."""
        return {
            "progress": vars(self.progress).copy(),
            "networks": {name: net.state_dict() for name, net in self.model.nets.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything of it, as nested dicts of tensors and plain values."""
        return {
            **self.networks(),
            # Learning rates and betas follow from the settings.
            "moments": {
                name: optimizer.state_dict()["state"]
                for name, optimizer in self.model.optimizers.items()
            },
            "model": self.model.state_dict(),
        }

    def load_networks(self, state: Mapping[str, Any]) -> None:
        """Restore what `networks()` returned."""
        self.progress = Progress(**state["progress"])
        for name, net in self.model.nets.items():
            net.load_state_dict(state["networks"][name])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        self.load_networks(state)
        for name, optimizer in self.model.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state["moments"][name], "param_groups": groups})
        self.model.load_state_dict(state["model"])

    def set_learning_rates(self, stage: Stage) -> None:
        """Those of `stage` for the next iteration; networks and moments stay as they are."""
        factor = stage.schedule(self.progress.nimg) * self.progress.lr_factor
        for name, lr in stage.learning_rates.items():
            for group in self.model.optimizers[name].param_groups:
                group["lr"] = lr * factor
