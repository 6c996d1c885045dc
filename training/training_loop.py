"""One training run: the cooperative stage, then the adversarial one."""

import logging
import random
from functools import partial
from pathlib import Path

import numpy as np
import torch

from torch_utils import host_memory
from torch_utils.ops import backend
from torch_utils.training_stats import TrainingStats
from training.ada import UPDATE_INTERVAL
from training.curves import save_curves
from training.data_loader import RealImages
from training.diagnostics import Diagnostics
from training.divergence import DivergenceGuard
from training.ema import ema_decay, update_ema
from training.page import save_page
from training.reporting import Reporter
from training.run_images import RunImages
from training.snapshot import remove_old_snapshots, save_snapshot
from training.stages import build_stages, enter_stage, run_phase
from training.state import create_state

logger = logging.getLogger(__name__)


def prepare_device(config):
    """Seed every random number generator and set the performance switches; returns the device.

    Raises:
        NativeUnavailableError: `config.ops` insists on native operators that cannot be had.
    """
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
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
        run_dir: Existing, empty folder that everything is written into.
        resume: Networks of a snapshot (`legacy.load_network_pkl`) to start from, or None.
        measure: Function (G_ema, path of its snapshot) that returns numbers by name, or None.
    """

    def __init__(self, config, dataset, run_dir, resume=None, measure=None):
        device = prepare_device(config)
        self.config = config
        self.run_dir = Path(run_dir)
        self.measure = measure
        self.stage_switch = None  # snapshot at the end of the first stage
        self.stats = TrainingStats()
        self.state = create_state(config, dataset, device, resume)
        self.coop, self.adversarial = build_stages(config, self.state, self.stats.report)
        self.stage = None
        self.guard = DivergenceGuard(self.state)
        self.diagnostics = Diagnostics(config)
        self.data = RealImages(dataset, config, device)
        self.images = RunImages(self.run_dir, dataset, config.seed, config.batch_gpu, device)
        self.reporter = Reporter(config, self.run_dir, self.stats, device)

    def train(self):
        """Train until `kimg`.

        Raises:
            DivergenceError: Training has run away; the last good networks were written before.
            SymptomError: A symptom of `stop_on` showed; networks were written before.
        """
        end = "Interrupted"
        try:
            with self.reporter, self.data:
                self.images.save_reals()
                self.images.save_fakes(self.state.G_ema, "fakes_init.png")
                self.reporter.maintained()
                while not self.done:
                    self.enter(self.due_stage())
                    self.iterate()
                    self.reporter.progress(self.state.nimg, self.stage.name)
                    if self.reporter.tick_is_due(self.state.nimg) or self.stage_is_over():
                        self.end_tick()
            end = None
        except Exception as error:
            end = f"Stopped: {error}"
            raise
        finally:  # a run that failed is worth looking at, too
            if self.reporter.tick > 0:
                kimg = f"after {self.state.nimg / 1e3:.1f} kimg"
                ends = [] if end is None else [f"{end} ({kimg})"]
                save_curves(self.run_dir)
                save_page(self.run_dir, [*self.diagnostics.warnings, *ends])

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
                with self.reporter.timed(phase.name), phase.within(draw):
                    run_phase(self.stage, phase, draw(), self.stats.report)
        decay = ema_decay(config.batch, state.nimg, config.ema_kimg, config.ema_rampup)
        update_ema(state.G_ema, state.G, decay)
        state.iteration += 1
        state.nimg += config.batch
        if self.stage.ada is not None and state.iteration % UPDATE_INTERVAL == 0:
            self.stage.ada.update(config.batch * UPDATE_INTERVAL)

    def end_tick(self):
        """Report, make sure that training is sane, and save what is due.

        A stage ends with a tick, so that statistics never mix stages, and with a snapshot: what
        the next stage starts from, or the result.
        """
        tick = self.reporter.tick
        pipe = self.state.augment_pipe
        augment_p = 0.0 if pipe is None else pipe.p.item()
        self.stats.report("Progress/diversity", self.images.diversity(self.state.G))
        collected = self.reporter.end_tick(self.state.nimg, self.stage.name, augment_p)
        self.guard.check(self.state, self.stage.name, collected, self.save_networks)
        self.diagnostics.check(collected, self.save_networks)
        if self.stage_is_over() or tick % self.config.snap == 0:
            self.after_snapshot(self.save_networks())
        self.reporter.maintained()

    def save_networks(self):
        """Write a snapshot and the images of its generator, named by kimg; returns its path."""
        name = f"{self.state.nimg // 1000:06d}"
        self.images.save_fakes(self.state.G_ema, f"fakes{name}.png")
        path = self.run_dir / f"network-snapshot-{name}.pkl"
        save_snapshot(
            path,
            **self.state.nets_of_snapshot(),
            augment_pipe=self.state.augment_pipe,
            training_set_kwargs=self.config.training_set_kwargs(),
        )
        return path

    def after_snapshot(self, path):
        """Measure the generator that was saved as `path`, and remove snapshots that are too old."""
        if self.measure is not None:
            self.reporter.metrics(self.measure(self.state.G_ema, path), self.state.nimg)
        if self.stage_is_over() and not self.done:
            self.stage_switch = path
        if self.config.keep is not None:
            remove_old_snapshots(self.run_dir, self.config.keep, spare=self.stage_switch)
