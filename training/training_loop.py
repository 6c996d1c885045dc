"""The course of a run: the cooperative stage, then the adversarial one."""

import logging
from functools import partial

from torch_utils import distributed
from training.data.data_loader import require_unchanged
from training.dataset import DatasetError
from training.monitor.diagnostics import SymptomError
from training.monitor.divergence import DivergenceError
from training.monitor.page import show_run
from training.monitor.verdict import Action, Verdict
from training.run.consistency import ConsistencyError
from training.stages import run_phase
from training.training_run import TrainingRun

# Errors that come to all processes together, between two iterations.
RAISED_ON_ALL_RANKS = (DatasetError, DivergenceError, SymptomError, ConsistencyError)

logger = logging.getLogger(__name__)


def train(run: TrainingRun) -> None:
    """Train until `kimg`, or until a signal asks to stop; then a checkpoint has been saved.

    Raises:
        DivergenceError: Training has run away; the last good networks were written before.
        SymptomError: A symptom of `stop_on` showed; networks were written before.
        CheckpointError: Checkpoints cannot be written any more.
    """
    with run.interruption:
        end = "Interrupted"
        try:
            with run.reporter, run.data:
                begin(run)
                iterate_to_end(run)
                run.checkpointer.finish()
            end = "" if run.done else f"Interrupted by {run.interruption.name}"
        except Exception as error:
            end = f"Stopped: {error}"
            raise
        finally:  # a run that failed is worth looking at, too
            if run.reporter.tick > 0 and distributed.is_rank0():
                ends = [f"{end} (after {run.nimg / 1e3:.1f} kimg)"] if end else []
                show_run(run.run_dir, [*run.diagnostics.warnings, *ends])


def begin(run: TrainingRun) -> None:
    """Show what there is before training, or restore the random numbers."""
    if run.checkpointer.resuming:  # now, as starting the data loader draws a number
        run.checkpointer.restore_random(run.nimg)
        run.reporter.metrics(run.snapshots.evaluate(), run.nimg)
    else:
        run.snapshots.save_first_pictures()
        run.reporter.maintenance()


def iterate_to_end(run: TrainingRun) -> None:
    """Iterate to the end of the run, or until a signal; what was trained is saved then."""
    try:
        stop, _ = sync_ranks(run)
        while not run.done and not stop:
            stage = run.enter_stage()
            iterate(run)
            run.reporter.progress(run.nimg, stage.name)
            stop, save = sync_ranks(run)
            if run.reporter.tick_is_due(run.nimg) or run.stage_is_over():
                end_tick(run, save, stop)
            elif save:
                run.checkpointer.save(run.nimg)
    except RAISED_ON_ALL_RANKS as error:
        if isinstance(error, DatasetError):
            run.checkpointer.save(run.nimg)
        run.checkpointer.finish()
        distributed.wait_for_rank0()  # which has more to write than the others
        if isinstance(error, DatasetError):
            require_unchanged(run.dataset)  # damaged images may be what is left of the data
        raise
    if not run.done:
        run.checkpointer.save(run.nimg)


def iterate(run: TrainingRun) -> None:
    """One batch of real images through every phase that is due."""
    images, labels = next(run.data)
    stage, progress = run.stage, run.state.progress
    stepped: set[str] = set()
    for phase in stage.phases:
        if phase.is_due(progress.iteration):
            draw = partial(run.model.micro_batches, phase, images, labels)
            with run.reporter.timed(phase.name), phase.context(draw):
                run_phase(stage, phase, draw(), run.stats.report)
            stepped |= phase.nets.keys()
    run.model.after_iteration(stage, stepped, progress)
    progress.iteration += 1
    progress.nimg += run.config.batch


def sync_ranks(run: TrainingRun) -> tuple[bool, bool]:
    """Agree on damaged images, and whether to stop by a signal, and to save a checkpoint."""
    if not run.done:
        run.data.draw_ahead()
    asked, damaged = run.interruption.name is not None, bool(run.data.pending_damage)
    stop, save, damage = distributed.any_rank(asked, run.checkpointer.is_due(), damaged)
    if stop:
        names = distributed.all_gather(run.interruption.name)
        run.interruption.name = next(filter(None, names))
    if damage:
        run.data.merge_damage(distributed.all_gather(run.data.pending_damage))
    return stop, save


def end_tick(run: TrainingRun, save: bool = False, stop: bool = False) -> None:
    """Report, hear the guards, and save what is due.

    A stage ends with a tick, so that statistics never mix stages, and with a snapshot: what the
    next stage starts from, or the result.
    """
    due = run.stage_is_over() or run.reporter.tick % run.config.snap == 0
    stats = run.reporter.end_tick(run.nimg, run.stage.name, run.model_values())
    if heed(run, run.guard.check(run.stage.name, stats)) is Action.ROLL_BACK:
        return
    heed(run, run.diagnostics.check(stats, run.stage.adaptive))
    if due:
        run.snapshots.save(run.nimg, ends_stage=run.stage_is_over(), last=run.done)
    # Measuring takes long: what is measured is saved before. With the last one a run is done.
    if (due or save) and not (stop or run.done):
        run.reporter.maintenance()
        run.checkpointer.save(run.nimg)
    if due and (run.done or not stop):
        run.reporter.metrics(run.snapshots.evaluate(), run.nimg)
    run.reporter.maintenance()
    if run.done:
        run.checkpointer.save(run.nimg)
    require_unchanged(run.dataset)


def heed(run: TrainingRun, verdict: Verdict) -> Action:
    """Do what a guard says of a tick: warn, roll back, or save networks and stop by its error."""
    for warning in verdict.warnings:
        logger.log(logging.WARNING if distributed.is_rank0() else logging.DEBUG, warning)
    if verdict.action is Action.ROLL_BACK:
        run.roll_back()
    if verdict.error is not None:
        if isinstance(verdict.error, DivergenceError):
            run.guard.restore_networks()
        run.snapshots.save_networks(run.nimg)
        raise verdict.error
    return verdict.action
