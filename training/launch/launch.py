"""Carry a `RunPlan` out: a run folder, processes, and what becomes of them."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dnnlib.errors import UserError
from training.launch.plan import RunPlan
from training.run.run_dir import create_run_dir, is_unused

if TYPE_CHECKING:
    from training.launch.session import OpenEvaluate, Outcome

# torch is imported inside functions, so that `train.py --help` answers at once.


def spawns(plan: RunPlan) -> bool:
    """Whether the run trains in new processes that this one starts."""
    from torch_utils import distributed

    return plan.config.gpus > 1 and distributed.get_world_size() == 1


def launch(plan: RunPlan, open_evaluate: "OpenEvaluate | None" = None) -> "Outcome":
    """Train as planned, to the end of the run or until a signal.

    Args:
        plan: What to do; a new run gets its folder here.
        open_evaluate: Returns what measures snapshots, on rank 0; it must be picklable where
            processes are spawned. None: nothing is measured.

    Raises:
        UserError: Whatever the user can mend.
    """
    from torch_utils import distributed
    from torch_utils.ops.backend import select
    from torch_utils.spawn import run_processes
    from training.launch.session import errors_explained, train_as_planned, train_spawned
    from training.transfer import read_snapshot

    config = plan.config
    select(config.ops, config.device.partition(":")[0])  # builds what the run will use
    networks = None
    if (resume := config.resume) is not None and plan.run_dir is None:
        networks = distributed.rank0_first(lambda: read_snapshot(resume))
    run_dir = plan.run_dir or distributed.broadcast_from_rank0(lambda: make_run_dir(plan))
    ended = False
    try:
        with errors_explained(run_dir):
            if spawns(plan):  # networks cannot be pickled; each process reads them
                outcome = run_processes(
                    train_spawned,
                    config.gpus,
                    *(plan, run_dir, open_evaluate),
                    device=config.device,
                    timeout=timedelta(minutes=config.timeout_minutes),
                )
            else:
                outcome = train_as_planned(plan, run_dir, networks, open_evaluate)
        ended = True
        return outcome
    finally:
        if not ended and distributed.is_rank0() and plan.run_dir is None and is_unused(run_dir):
            shutil.rmtree(run_dir, ignore_errors=True)


def make_run_dir(plan: RunPlan) -> Path:
    """Make the folder of a new run, with its settings in it."""
    from training.launch.attempts import job_name
    from training.run.resume import write_settings

    try:
        run_dir = create_run_dir(plan.outdir, plan.description, job_name())
        write_settings(run_dir, plan.config)
        return run_dir
    except OSError as error:
        raise UserError(
            f"Cannot make a run folder in --outdir={plan.outdir}: {error.strerror}. "
            "Choose another one."
        ) from error
