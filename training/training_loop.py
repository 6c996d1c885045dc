"""One training run: the cooperative stage, then the adversarial one."""

import contextlib
import logging
import time
from functools import partial
from pathlib import Path

import torch

from dnnlib.full_disk import disk_may_be_full
from dnnlib.util import first_line
from torch_utils import distributed, host_memory
from torch_utils.ops import backend
from torch_utils.training_stats import TrainingStats
from training.ada import UPDATE_INTERVAL
from training.data.data_loader import RealImages
from training.dataset import DatasetError
from training.ema import ema_decay, update_ema
from training.monitor.curves import save_curves
from training.monitor.diagnostics import Diagnostics, SymptomError
from training.monitor.divergence import DivergenceError, DivergenceGuard, finite_networks
from training.monitor.page import save_page
from training.monitor.reporting import Reporter
from training.monitor.run_images import RunImages
from training.run.checkpoint import CheckpointError, CheckpointWriter
from training.run.consistency import ConsistencyError, check_consistency
from training.run.interruption import Interruption
from training.run.random_state import RandomState, seed_all
from training.run.resume import journal_sizes
from training.snapshot import remove_old_snapshots, save_snapshot
from training.stages import build_stages, enter_stage, run_phase
from training.state import create_state

# Errors that come to all processes together, between two iterations.
RAISED_ON_ALL_RANKS = (DatasetError, DivergenceError, SymptomError, ConsistencyError)

logger = logging.getLogger(__name__)


def prepare_device(config):
    """Seed every random number generator and set the performance switches; returns the device.

    Raises:
        NativeUnavailableError: `config.ops` insists on native operators that cannot be had.
    """
    seed_all(config.seed)
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
    torch.backends.cudnn.allow_tf32 = config.allow_tf32
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what events, pinned memory and synchronize() refer to
    else:
        host_memory.keep_freed_memory()
    backend.select(config.ops, device.type)
    return device


class TrainingRun:
    """Everything one run needs, built once; `train()` runs it to its end.

    Args:
        config: A `TrainingConfig`.
        dataset: The opened `ImageFolderDataset` that `config` describes.
        run_dir: Existing folder that everything is written into; empty, or as a state left it.
        resume: Networks of a snapshot (`legacy.load_network_pkl`) to start from, or None.
        continued: What `read_newest_checkpoint(run_dir)` returned, to go on from there; or None.
        measure: Function (G_ema, path of its snapshot) that returns numbers by name, or None.

    Raises:
        DatasetError: Too many images are damaged.
        CheckpointError: `continued` is of another run.
    """

    def __init__(self, config, dataset, run_dir, resume=None, continued=None, measure=None):
        device = prepare_device(config)
        self.config = config
        self.run_dir = Path(run_dir)
        self.measure = measure
        self.stage_switch = None  # name of the snapshot at the end of the first stage
        self.pending_evaluation = None  # name of a snapshot that is still to be measured
        self.stats = TrainingStats()
        self.state = create_state(config, dataset, device, resume)
        self.coop, self.adversarial = build_stages(config, self.state, self.stats.report)
        self.stage = None
        self.guard = DivergenceGuard(self.state, self.rollback_parts())
        self.diagnostics = Diagnostics(config, quiet=not distributed.is_rank0())
        self.data = RealImages(dataset, config, device, distributed.get_rank())
        self.dataset = dataset
        self.images = RunImages(self.run_dir, dataset, config.seed, config.batch_gpu, device)
        first = distributed.is_rank0()
        self.reporter = Reporter(config, self.run_dir, self.stats, device, quiet=not first)
        self.random = RandomState(device)
        if not first:  # the networks have been made; all else is drawn independently
            seed_all(config.seed * config.gpus + distributed.get_rank())
        self.interruption = Interruption()
        path, self.saved = continued or (None, None)
        self.writer = CheckpointWriter(self.run_dir, path) if first else None
        self.last_save = time.monotonic()
        if self.saved is None:
            self.data.merge_damage([self.images.damage])
        else:
            self.restore(self.saved)

    def restore(self, saved):
        """Put every part where it was when a state was saved, except for the random numbers."""
        self.stage_switch, self.pending_evaluation = (
            saved["stage_switch"],
            saved["pending_evaluation"],
        )
        for name, part in self.parts().items():
            try:
                part.load_state_dict(saved["parts"][name])
            except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise CheckpointError(
                    f"the checkpoint does not fit this run ({name}: {first_line(error)}); "
                    "--restart starts over"
                ) from error

    def rollback_parts(self):
        """Parts that a run which diverges takes back to its last good tick, if it may."""
        if self.config.on_divergence != "restore":
            return ()
        ada = self.adversarial.ada
        return (self.state, self.adversarial.loss, *([] if ada is None else [ada]))

    def parts(self):
        """All that decides how the run goes on, by name, except for the random numbers."""
        ada = self.adversarial.ada
        return {
            "training": self.state,
            "diagnostics": self.diagnostics,
            "statistics": self.stats,
            "reporter": self.reporter,
            "data": self.data,
            "loss": self.adversarial.loss,
            **({} if ada is None else {"ada": ada}),
            "guard": self.guard,  # looks at the others when it is loaded
        }

    def train(self):
        """Train until `kimg`, or until a signal asks to stop; then the state has been saved.

        Raises:
            DivergenceError: Training has run away; the last good networks were written before.
            SymptomError: A symptom of `stop_on` showed; networks were written before.
            CheckpointError: Checkpoints cannot be written any more.
        """
        with self.interruption:
            end = "Interrupted"
            try:
                with self.reporter, self.data:
                    self.begin()
                    self.train_on()
                    self.finish_saving()
                end = None if self.done else f"Interrupted by {self.interruption.name}"
            except Exception as error:
                end = f"Stopped: {error}"
                raise
            finally:  # a run that failed is worth looking at, too
                if self.reporter.tick > 0 and distributed.is_rank0():
                    self.show(end)

    def train_on(self):
        """Iterate to the end of the run, or until a signal; what was trained is saved then."""
        try:
            stop, _ = self.sync_ranks()
            while not self.done and not stop:
                self.enter(self.due_stage())
                self.iterate()
                self.reporter.progress(self.state.nimg, self.stage.name)
                stop, save = self.sync_ranks()
                if self.reporter.tick_is_due(self.state.nimg) or self.stage_is_over():
                    self.end_tick(save, stop)
                elif save:
                    self.save_checkpoint()
        except RAISED_ON_ALL_RANKS as error:
            if isinstance(error, DatasetError):
                self.save_checkpoint()
            self.finish_saving()
            distributed.wait_for_rank0()  # which has more to write than the others
            if isinstance(error, DatasetError):
                self.check_data()  # damaged images may be what is left of the data
            raise
        if not self.done:
            self.save_checkpoint()

    def sync_ranks(self):
        """What the processes do together after an iteration; the next batch is drawn for it.

        Returns:
            (whether a signal came to one of them, whether a state is due).

        Raises:
            DatasetError: One of them has no next batch, or too many images are damaged.
        """
        if not self.done:
            self.data.draw_ahead()
        asked = self.interruption.name is not None
        stop, save, news = distributed.any_rank(
            asked, self.checkpoint_is_due(), bool(self.data.pending_damage)
        )
        if stop:
            names = distributed.all_gather(self.interruption.name)
            self.interruption.name = next(filter(None, names))
        if news:
            self.data.merge_damage(distributed.all_gather(self.data.pending_damage))
        return stop, save

    def show(self, end):
        """Draw the curves and write the page of the run; `end`: how it was cut short, or None."""
        ends = [] if end is None else [f"{end} (after {self.state.nimg / 1e3:.1f} kimg)"]
        with disk_may_be_full("no learning curves"):
            save_curves(self.run_dir)
            save_page(self.run_dir, [*self.diagnostics.warnings, *ends])

    def begin(self):
        """Show what there is before training, or take the random numbers up again."""
        if self.saved is not None:  # now, as starting the data loader draws a number
            states, rank = self.saved["random"], distributed.get_rank()
            if rank < len(states):
                self.random.load_state_dict(states[rank])
            else:  # there are more processes than before
                seed_all(self.config.seed * self.config.gpus + rank + self.state.nimg)
            self.saved = None
            if self.pending_evaluation is not None:
                self.evaluate_snapshot()
        elif distributed.is_rank0():
            self.images.save_reals()
            self.images.save_fakes(self.state.G_ema, "fakes_init.png")
            self.reporter.maintenance()

    @property
    def done(self):
        """Whether all images of the run have been seen."""
        return self.state.nimg >= self.config.kimg * 1000

    def due_stage(self):
        """Cooperative until `coop_kimg` real images have been seen, then adversarial."""
        cooperative = self.state.nimg < self.config.coop_kimg * 1000
        return self.coop if cooperative else self.adversarial

    def stage_is_over(self):
        """Whether the next iteration belongs to another stage, or there is none."""
        return self.done or self.due_stage() is not self.stage

    def enter(self, stage):
        """Go on in `stage`; networks and optimizers stay as they are, learning rates may change."""
        if stage is not self.stage:
            self.stage = stage
            enter_stage(stage, self.config, self.state)
            logger.info("%s stage from kimg %.1f", stage.name.capitalize(), self.state.nimg / 1e3)

    def iterate(self):
        """One batch of real images through every phase that is due."""
        config, state = self.config, self.state
        real = next(self.data)
        for phase in self.stage.phases:
            if state.iteration % phase.interval == 0:
                draw = partial(self.data.micro_batches, real)
                with self.reporter.timed(phase.name), phase.context(draw):
                    run_phase(self.stage, phase, draw(), self.stats.report)
        distributed.all_reduce_mean(state.G.mapping.w_avg)  # each process has seen other latents
        decay = ema_decay(config.batch, state.nimg, config.ema_kimg, config.ema_rampup)
        update_ema(state.G_ema, state.G, decay)
        state.iteration += 1
        state.nimg += config.batch
        if self.stage.ada is not None and state.iteration % UPDATE_INTERVAL == 0:
            self.stage.ada.update(config.batch * UPDATE_INTERVAL)

    def end_tick(self, save=False, stop=False):
        """Report, make sure that training is sane, and save what is due.

        A stage ends with a tick, so that statistics never mix stages, and with a snapshot: what
        the next stage starts from, or the result.

        Args:
            save: A state is due, with or without a snapshot.
            stop: The run stops here: it saves a state then, and measures when it goes on.
        """
        tick = self.reporter.tick
        pipe = self.state.augment_pipe
        augment_p = 0.0 if pipe is None else pipe.p.item()
        if distributed.is_rank0():
            self.stats.report("Progress/diversity", self.images.diversity(self.state.G))
        collected = self.reporter.end_tick(self.state.nimg, self.stage.name, augment_p)
        if self.guard.check(self.stage.name, collected, self.save_networks):
            self.stage = None  # to be entered anew, with other learning rates
            self.reporter.went_back(self.state.nimg)
            return
        self.diagnostics.check(collected, self.save_networks)
        snapshot_is_due = self.stage_is_over() or tick % self.config.snap == 0
        if snapshot_is_due:
            self.keep_snapshot(self.save_networks())
        # Measuring takes long: what it follows is saved before. With the last state a run is done.
        if (snapshot_is_due or save) and not (stop or self.done):
            self.reporter.maintenance()
            self.save_checkpoint()
        if snapshot_is_due and (self.done or not stop):
            self.evaluate_snapshot()
        self.reporter.maintenance()
        if self.done:
            self.save_checkpoint()
        self.check_data()

    def check_data(self):
        """Raise DatasetError in all processes if one of them finds other data than it opened."""
        try:
            self.dataset.check_unchanged()
            problem = None
        except DatasetError as error:
            problem = str(error)
        if problems := list(filter(None, distributed.all_gather(problem))):
            raise DatasetError(problems[0])

    def checkpoint_is_due(self):
        """Whether `save_minutes` have passed, for the first process; not while one is written."""
        if self.writer is None:
            return False
        self.writer.poll()
        spent = time.monotonic() - self.last_save
        return spent >= self.config.save_minutes * 60 and not self.writer.busy

    def save_checkpoint(self):
        """Start to write the checkpoint, from which a later process goes on.

        A state that is lost already, with a tick still to notice, replaces no good one.

        Raises:
            ConsistencyError: The processes do not hold the same networks any more.
        """
        check_consistency(self.state.nets())
        if not finite_networks(self.state):
            return
        parts = {name: part.state_dict() for name, part in self.parts().items()}
        random_states = distributed.gather(self.random.state_dict())
        if self.writer is not None:
            content = {
                "parts": parts,
                "random": random_states,
                "journals": journal_sizes(self.run_dir),
                "dataset": self.dataset.signature,
                "stage_switch": self.stage_switch,
                "pending_evaluation": self.pending_evaluation,
            }
            self.writer.save(self.state.nimg, content)
        self.last_save = time.monotonic()

    def finish_saving(self):
        """Wait until the last state is on disk; raises CheckpointError where it cannot be."""
        if self.writer is not None:
            self.writer.finish()

    def save_networks(self):
        """Write a snapshot and the images of its generator, named by kimg.

        Returns:
            Its path, or None where another process writes, or the disk is full.
        """
        if not distributed.is_rank0():
            return None
        name = f"{self.state.nimg // 1000:06d}"
        path = self.run_dir / f"network-snapshot-{name}.pkl"
        # Without the last one a run is not done: the same command makes it again.
        last = contextlib.nullcontext()
        with last if self.done else disk_may_be_full(f"no snapshot of kimg {name}"):
            self.images.save_fakes(self.state.G_ema, f"fakes{name}.png")
            save_snapshot(
                path,
                **self.state.nets_of_snapshot(),
                augment_pipe=self.state.augment_pipe,
                training_set_kwargs=self.config.training_set_kwargs(),
            )
            return path
        return None

    def keep_snapshot(self, path):
        """Remember what has been saved as `path`, and remove snapshots that are too old."""
        if path is None:
            return
        self.pending_evaluation = None if self.measure is None else path.name
        if self.stage_is_over() and not self.done:
            self.stage_switch = path.name
        if self.config.keep is not None:
            spare = self.stage_switch and self.run_dir / self.stage_switch
            remove_old_snapshots(self.run_dir, self.config.keep, spare=spare)

    def evaluate_snapshot(self):
        """Measure the generator of the snapshot that was saved last."""
        name, self.pending_evaluation = self.pending_evaluation, None
        if name is not None and self.measure is not None:
            numbers = self.measure(self.state.G_ema, self.run_dir / name)
            self.reporter.metrics(numbers, self.state.nimg)
        distributed.wait_for_rank0()  # measuring takes longer than a step may
