"""When a run saves a checkpoint, what is in it, and how a run is put back to one."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from dnnlib.util import first_line
from torch_utils import distributed
from torch_utils.misc import finite_weights
from training.run.checkpoint_file import CheckpointError, CheckpointWriter
from training.run.consistency import check_consistency
from training.run.random_state import RandomState, seed_all
from training.run.resume import journal_sizes


class Part(Protocol):
    """Something of a run that remembers."""

    def state_dict(self) -> Any:
        """What it remembers; all processes call this together."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Restore what `state_dict()` returned."""
        ...


class Checkpointer:
    """Saves all parts of a run every `save_minutes`, and restores them.

    Args:
        config: The `TrainingConfig`.
        run_dir: The run folder.
        signature: Tells the data set from others (`ImageFolderDataset.signature`).
        nets: All networks by name; they must be the same in all processes.
        trained: Those that a guard watches; they must be finite.
        device: Where training happens.
        saved: What `read_newest_checkpoint(run_dir)` returned, to resume from; or None.
    """

    def __init__(
        self,
        config: Any,
        run_dir: Path,
        signature: str,
        nets: Mapping[str, torch.nn.Module],
        trained: Mapping[str, torch.nn.Module],
        device: torch.device,
        saved: tuple[Path, dict[str, Any]] | None = None,
    ) -> None:
        self._config, self._run_dir, self._signature = config, run_dir, signature
        self._nets, self._trained = nets, trained
        self._parts: dict[str, Part] = {}
        self._random = RandomState(device)
        path, self._saved = saved or (None, None)
        self._writer = CheckpointWriter(run_dir, path) if distributed.is_rank0() else None
        self._last = time.monotonic()

    @property
    def resuming(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return self._saved is not None

    def add(self, **parts: Part) -> None:
        """Save these by their names, too; a run that resumes puts them back where they were.

        Raises:
            CheckpointError: The checkpoint is of another run.
        """
        self._parts |= parts
        if self._saved is None:
            return
        for name, part in parts.items():
            try:
                part.load_state_dict(self._saved["parts"][name])
            except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise CheckpointError(
                    f"the checkpoint does not fit this run ({name}: {first_line(error)}); "
                    "--restart starts over"
                ) from error

    def restore_random(self, nimg: int) -> None:
        """Put the random numbers where they were, once everything that draws some is ready."""
        assert self._saved is not None, "there is nothing to restore"
        saved, rank = self._saved["random"], distributed.get_rank()
        if rank < len(saved):
            self._random.load_state_dict(saved[rank])
        else:  # there are more processes than before
            seed_all(self._config.seed * self._config.gpus + rank + nimg)
        self._saved = None  # as large as what has been made of it

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writer is not None and self._writer.busy

    def is_due(self) -> bool:
        """Whether `save_minutes` have passed, on rank 0; not while a checkpoint is written."""
        if self._writer is None:
            return False
        self._writer.poll()
        spent = time.monotonic() - self._last
        return spent >= self._config.save_minutes * 60 and not self.busy

    def save(self, nimg: int) -> None:
        """Start to write a checkpoint, from which a later process resumes.

        Networks that are lost already, with a tick still to notice, replace no good ones.

        Raises:
            ConsistencyError: The processes do not hold the same networks any more.
            CheckpointError: Several saves in a row have failed.
        """
        check_consistency(self._nets)
        if not all(finite_weights(self._trained).values()):
            return
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        random_states = distributed.gather(self._random.state_dict())
        if self._writer is not None:
            content = {
                "parts": parts,
                "random": random_states,
                "journals": journal_sizes(self._run_dir),
                "dataset": self._signature,
            }
            self._writer.save(nimg, content)
        self._last = time.monotonic()

    def finish(self) -> None:
        """Wait until the last checkpoint is on disk; CheckpointError where it cannot be."""
        if self._writer is not None:
            self._writer.finish()
