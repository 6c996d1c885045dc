"""The snapshots of a run: networks and pictures by kimg, kept, thinned out and measured."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dnnlib.full_disk import disk_may_be_full
from torch_utils import distributed
from training.run.snapshot_file import remove_old_snapshots, save_snapshot

Evaluate = Callable[[torch.nn.Module, Path], Mapping[str, float]]


class Snapshots:
    """Writes snapshots on rank 0, and has each measured once.

    Args:
        config: The `TrainingConfig`.
        run_dir: The run folder.
        model: The `training.model.Model`.
        evaluate: Function (G_ema, path of its snapshot) that returns numbers by name, or None.
    """

    def __init__(
        self, config: Any, run_dir: Path, model: Any, evaluate: Evaluate | None = None
    ) -> None:
        self._config, self._run_dir, self._model = config, run_dir, model
        self._evaluate = evaluate
        self._stage_switch: str | None = None  # snapshot at the end of the first stage
        self._pending_evaluation: str | None = None  # snapshot that is still to be measured

    def state_dict(self) -> dict[str, Any]:
        """What is known of snapshots that have been written."""
        return {"stage_switch": self._stage_switch, "pending_evaluation": self._pending_evaluation}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        self._stage_switch = state["stage_switch"]
        self._pending_evaluation = state["pending_evaluation"]

    def save_first_pictures(self) -> None:
        """Write the pictures of real images and of what is generated before training."""
        if distributed.is_rank0():
            self._model.preview.save_reals(self._run_dir / "reals.png")
            self._model.preview.save_fakes(self._run_dir / "fakes_init.png")

    def save(self, nimg: int, *, ends_stage: bool, last: bool) -> None:
        """Write a snapshot that is due, to be measured later; remove those that are too old.

        Args:
            nimg: Images seen.
            ends_stage: The next stage starts from it.
            last: The run ends with it; then a full disk is an error, and the run is not done:
                the same command makes it again.
        """
        path = self.save_networks(nimg, last)
        if path is None:
            return
        self._pending_evaluation = None if self._evaluate is None else path.name
        if ends_stage and not last:
            self._stage_switch = path.name
        if self._config.keep is not None:
            spare = self._stage_switch and self._run_dir / self._stage_switch
            remove_old_snapshots(self._run_dir, self._config.keep, spare=spare)

    def save_networks(self, nimg: int, last: bool = False) -> Path | None:
        """Write networks, and the pictures of their generator, named by kimg.

        Returns:
            Path of the snapshot, or None on other ranks, or where the disk is full.
        """
        if not distributed.is_rank0():
            return None
        name = f"{nimg // 1000:06d}"
        path = self._run_dir / f"network-snapshot-{name}.pkl"
        must_not_fail = contextlib.nullcontext()
        with must_not_fail if last else disk_may_be_full(f"no snapshot of kimg {name}"):
            self._model.preview.save_fakes(self._run_dir / f"fakes{name}.png")
            kwargs = self._config.training_set_kwargs()
            save_snapshot(path, training_set_kwargs=kwargs, **self._model.snapshot())
            return path
        return None

    def evaluate(self) -> Mapping[str, float]:
        """Numbers of the snapshot that is still to be measured; all processes wait for them."""
        name, self._pending_evaluation = self._pending_evaluation, None
        numbers: Mapping[str, float] = {}
        if name is not None and self._evaluate is not None:
            numbers = self._evaluate(self._model.generator, self._run_dir / name)
        distributed.wait_for_rank0()  # measuring takes longer than a step may
        return numbers
