"""One process of a training run, from its run folder to its end."""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dnnlib.errors import UserError, last_line
from dnnlib.full_disk import FULL
from torch_utils import distributed
from training.data.image_cache import cache_images
from training.launch.plan import RunPlan
from training.monitor.divergence import DivergenceError
from training.run.checkpoint_file import find_checkpoints
from training.run.resume import changes, read_settings, restore, write_settings
from training.run.run_dir import lock_run, log_to
from training.run.snapshot_file import find_snapshots
from training.run.snapshots import Evaluate
from training.training_loop import train
from training.training_run import TrainingRun
from training.transfer import read_snapshot

logger = logging.getLogger(__name__)

OpenEvaluate = Callable[[], Evaluate]


class Outcome(NamedTuple):
    """How a run ended that did not fail."""

    run_dir: Path
    done: bool
    signal: str | None  # that asked to stop
    kimg: float
    saved_kimg: float | None  # of the newest checkpoint


def show_messages(rank0: bool = True) -> None:
    """Let this process say what training logs; all other ranks only warn."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    for name in ("training", "metrics"):
        logging.getLogger(name).setLevel(logging.INFO if rank0 else logging.WARNING)


def train_as_planned(
    plan: RunPlan,
    run_dir: Path,
    networks: Mapping[str, Any] | None = None,
    open_evaluate: OpenEvaluate | None = None,
) -> Outcome:
    """Train to the end of the run, or until a signal; the task of each of its processes.

    Args:
        plan: What to do.
        run_dir: The run folder.
        networks: Of --resume, where they have been read already.
        open_evaluate: Returns what measures snapshots, on rank 0.

    Raises:
        UserError, OSError: What the user can mend; `errors_explained` says how.
    """
    config = plan.config
    with contextlib.ExitStack() as stack:
        distributed.run_on_rank0(lambda: _enter(stack, run_dir))
        saved = None
        if plan.run_dir is not None:
            saved = distributed.broadcast_from_rank0(lambda: restore(run_dir, config, plan.dataset))
        if config.cache:
            distributed.rank0_first(lambda: cache_images(plan.dataset))
        if networks is None and (resume := config.resume) is not None and saved is None:
            networks = distributed.rank0_first(lambda: read_snapshot(resume))
        evaluate = distributed.run_on_rank0(lambda: open_evaluate and open_evaluate())
        own = dataclasses.replace(config, device=_own_device(config.device))
        run = TrainingRun(own, plan.dataset, run_dir, networks, saved, evaluate)
        del saved  # as large as what has been made of it
        if distributed.is_rank0():
            print(f"Run folder: {run_dir}", flush=True)  # the log lies in it
            if changed := changes(read_settings(run_dir), config):
                logger.info("Changed settings: %s", "; ".join(changed))
            write_settings(run_dir, config)
        train(run)
    checkpoints = find_checkpoints(run_dir) if distributed.is_rank0() else []
    newest = checkpoints[0].nimg / 1e3 if checkpoints else None
    return Outcome(run_dir, run.done, run.interruption.name, run.nimg / 1e3, newest)


def train_spawned(plan: RunPlan, run_dir: Path, open_evaluate: OpenEvaluate | None) -> Outcome:
    """`train_as_planned` in a new process, which has to be told what to say first."""
    show_messages(distributed.is_rank0())
    with errors_explained(run_dir):
        return train_as_planned(plan, run_dir, None, open_evaluate)


@contextlib.contextmanager
def errors_explained(run_dir: Path) -> Iterator[None]:
    """Context whose errors that a user can mend are one line, which says how to continue."""
    try:
        yield
    except OSError as error:
        way_out = ""
        if error.errno in FULL:
            way_out = f"; make room at '{run_dir.parent}' and give the same command again"
        raise UserError(last_line(error) + way_out) from error
    except DivergenceError as error:
        raise DivergenceError(f"{error}{_after_divergence(run_dir)}") from error
    except UserError as error:
        error.args = (last_line(error),)  # a data-loader worker puts its traceback before it
        raise


def _after_divergence(run_dir: Path) -> str:
    """What may be done after a run has diverged: the same again would diverge again."""
    checkpoints, snapshots = find_checkpoints(run_dir), find_snapshots(run_dir)
    if not (checkpoints and snapshots):
        return ""
    kimg = int(snapshots[-1].stem.rpartition("-")[2])  # of the last good networks
    if checkpoints[0].nimg // 1000 > kimg:  # saved while it diverged
        return f"; --restart --resume={snapshots[-1]} starts from these with other settings"
    there = f"kimg {checkpoints[0].nimg / 1e3:.1f}"
    return f"; --resume={run_dir} resumes from {there} with other settings"


def _enter(stack: contextlib.ExitStack, run_dir: Path) -> None:
    """Let nobody else into the run folder, and log into it, while `stack` lasts."""
    stack.enter_context(lock_run(run_dir))
    stack.enter_context(log_to(run_dir / "log.txt"))


def _own_device(device: str) -> str:
    """A GPU for each process of a machine; joining the others has chosen it."""
    several = distributed.get_world_size() > 1 and torch.device(device).type == "cuda"
    return f"cuda:{torch.cuda.current_device()}" if several else device
