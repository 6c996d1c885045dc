"""Everything that one training run needs, built once, and where it stands."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_utils import distributed
from torch_utils.training_stats import TrainingStats
from training.data.data_loader import RealImages
from training.model import TrainingState, build_model
from training.monitor.diagnostics import Diagnostics
from training.monitor.divergence import DivergenceGuard
from training.monitor.reporting import Reporter
from training.run.checkpointer import Checkpointer
from training.run.device import prepare_device
from training.run.interruption import Interruption
from training.run.random_state import seed_all
from training.run.snapshots import Evaluate, Snapshots
from training.stages import Stage

logger = logging.getLogger(__name__)


class TrainingRun:
    """The parts of a run, for `training.training_loop.train`.

    Args:
        config: A `TrainingConfig`.
        dataset: The opened `ImageFolderDataset` that `config` describes.
        run_dir: Existing folder that everything is written into; empty, or as a checkpoint left it.
        networks: Of a snapshot (`legacy.load_network_pkl`) to start from, or None.
        saved: What `read_newest_checkpoint(run_dir)` returned, to resume from there; or None.
        evaluate: Function (G_ema, path of its snapshot) that returns numbers by name, or None.

    Raises:
        DatasetError: Too many images are damaged.
        CheckpointError: `saved` is of another run.
    """

    def __init__(
        self,
        config: Any,
        dataset: Any,
        run_dir: str | Path,
        networks: Mapping[str, Any] | None = None,
        saved: tuple[Path, dict[str, Any]] | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        device = prepare_device(config)
        rank = distributed.get_rank()
        self.config, self.dataset, self.run_dir = config, dataset, Path(run_dir)
        self.stats = TrainingStats()
        self.model = build_model(config, dataset, device, self.stats.report, networks)
        self.state = TrainingState(self.model)
        nets, trained = self.model.nets, self.model.stages.adversarial.nets
        self.guard = DivergenceGuard(self.state, trained, config.on_divergence == "restore")
        self.diagnostics = Diagnostics(config.stop_on)
        self.data = RealImages(dataset, config, device, rank)
        self.reporter = Reporter(config, self.run_dir, self.stats, device, quiet=rank > 0)
        self.snapshots = Snapshots(config, self.run_dir, self.model, evaluate)
        self.interruption = Interruption()
        if rank > 0:  # the networks have been made; all else is drawn independently
            seed_all(config.seed * config.gpus + rank)
        self.checkpointer = Checkpointer(
            config, self.run_dir, dataset.signature, nets, trained, device, saved
        )
        self.checkpointer.add(
            training=self.state,
            diagnostics=self.diagnostics,
            statistics=self.stats,
            reporter=self.reporter,
            data=self.data,
            snapshots=self.snapshots,
            guard=self.guard,  # looks at the others when it is restored
        )
        self._stage: Stage | None = None
        if not self.checkpointer.resuming:
            self.data.merge_damage([self.model.preview.damage])

    @property
    def nimg(self) -> int:
        """Real images seen."""
        return self.state.progress.nimg

    @property
    def done(self) -> bool:
        """Whether all images of the run have been seen."""
        return self.nimg >= self.config.kimg * 1000

    @property
    def stage(self) -> Stage:
        """The stage that was entered last."""
        assert self._stage is not None, "enter_stage() comes first"
        return self._stage

    def due_stage(self) -> Stage:
        """Cooperative until `coop_kimg` real images have been seen, then adversarial."""
        cooperative, adversarial = self.model.stages
        due = self.nimg < self.config.coop_kimg * 1000
        return cooperative if due and cooperative is not None else adversarial

    def enter_stage(self) -> Stage:
        """The stage that is due, entered; networks and optimizers stay as they are."""
        due = self.due_stage()
        self.state.set_learning_rates(due)
        if due is not self._stage:
            self._stage = due
            logger.info("%s stage from kimg %.1f", due.name.capitalize(), self.nimg / 1e3)
        return due

    def stage_is_over(self) -> bool:
        """Whether the next iteration belongs to another stage, or there is none."""
        return self.done or self.due_stage() is not self._stage

    def model_values(self) -> dict[str, float]:
        """What the model tells at a tick; on rank 0, which reports it."""
        if not distributed.is_rank0():
            return {}
        diversity = self.model.preview.diversity()
        return {"Progress/diversity": diversity, **self.model.tick_values()}

    def roll_back(self) -> None:
        """Put everything back to the last good tick; the stage is entered anew."""
        self.guard.roll_back()
        self._stage = None
        self.reporter.rolled_back(self.nimg)
