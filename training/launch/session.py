"""One process of a training run, from its run folder to its end."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torch_utils import distributed
from training.data.image_cache import cache_images
from training.run.checkpoint import find_checkpoints
from training.run.resume import changes, read_settings, restore, write_settings
from training.run.run_dir import lock_run, log_to
from training.settings.config import TrainingConfig
from training.training_loop import TrainingRun
from training.transfer import read_snapshot

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """What all processes of a run are to do; can be pickled without `networks`."""

    config: TrainingConfig
    dataset: Any  # the opened `ImageFolderDataset`
    run_dir: Path
    resuming: bool = False  # from the newest state in run_dir
    networks: dict | None = None  # of --resume, where they have been read already
    open_measure: Callable | None = None  # returns what measures snapshots


class Outcome(NamedTuple):
    """How a run ended that did not fail."""

    done: bool
    signal: str | None  # that asked to stop
    kimg: float
    saved_kimg: float | None  # of the newest state


def show_messages(first=True):
    """Let this process say what training logs; all but the first one only warn."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    for name in ("training", "metrics"):
        logging.getLogger(name).setLevel(logging.INFO if first else logging.WARNING)


def train_job(job):
    """Train to the end of the run, or until a signal; the task of each of its processes.

    Args:
        job: What to do.

    Returns:
        Its `Outcome`.

    Raises:
        Whatever `TrainingRun`, `lock_run` and `restore` raise.
    """
    config, run_dir = job.config, Path(job.run_dir)
    with contextlib.ExitStack() as stack:
        distributed.run_on_rank0(lambda: _enter(stack, run_dir))
        continued = None
        if job.resuming:
            continued = distributed.broadcast_from_rank0(
                lambda: restore(run_dir, config, job.dataset)
            )
        if config.cache:
            distributed.rank0_first(lambda: cache_images(job.dataset))
        networks = job.networks
        if networks is None and config.resume is not None and continued is None:
            networks = distributed.rank0_first(lambda: read_snapshot(config.resume))
        measure = distributed.run_on_rank0(lambda: job.open_measure and job.open_measure())
        own = dataclasses.replace(config, device=_own_device(config.device))
        run = TrainingRun(own, job.dataset, run_dir, networks, continued, measure)
        del continued  # as large as what has been made of it
        if distributed.is_rank0():
            print(f"Run folder: {run_dir}", flush=True)  # the log lies in it
            if changed := changes(read_settings(run_dir), config):
                logger.info("Changed settings: %s", "; ".join(changed))
            write_settings(run_dir, config)
        run.train()
    states = find_checkpoints(run_dir) if distributed.is_rank0() else []
    saved = states[0].nimg / 1e3 if states else None
    return Outcome(run.done, run.interruption.name, run.state.nimg / 1e3, saved)


def train_spawned_job(job):
    """`train_job` in a new process, which has to be told what to say first."""
    show_messages(distributed.is_rank0())
    return train_job(job)


def _enter(stack, run_dir):
    """Let nobody else into the run folder, and log into it, while `stack` lasts."""
    stack.enter_context(lock_run(run_dir))
    stack.enter_context(log_to(run_dir / "log.txt"))


def _own_device(device):
    """A GPU for each process of a machine; joining the others has chosen it."""
    several = distributed.get_world_size() > 1 and torch.device(device).type == "cuda"
    return f"cuda:{torch.cuda.current_device()}" if several else device
