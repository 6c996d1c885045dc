"""A run that is killed again and again is, bit by bit, the run that was not."""

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests import tiny
from tests.train_cli import snapshot, ticks
from training import training_loop
from training.run.checkpoint_file import KEPT, find_checkpoints, read_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(train.__file__).parent
KILLS = 20
SWITCH = 62  # iterations before the one that ends the cooperative stage
SLOW_TO_IMPORT = (
    "training.training_loop",
    "tensorboard.summary.writer.record_writer",
    "torch._dynamo",
)
# Everything that remembers something: ADA, path lengths, power iterations, moments, look-ahead.
OPTIONS = (
    "--cfg=digits",
    "--kimg=2",
    "--coop-kimg=1",
    "--coop-steps=2",
    "--batch=16",
    "--device=cpu",
    "--g-scale=0.001953125",
    "--d-scale=0.001953125",
    "--gamma=1",
    "--pl-weight=2",
    "--aug=ada",
    "--style-mixing=0.9",
    "--zcr=1",
    "--sn=1",
    "--brc-lookahead=1",
    "--save-minutes=0",
    "--snap=1",
    "--ops=ref",
)


class Moment(NamedTuple):
    """When a process kills itself: so many Python events after the start of an iteration."""

    iteration: int
    events: int  # calls and returns, in the thread that trains or in the one that saves
    saving: bool


def moments(rng):
    """20 moments in the order in which a run comes by, three of them around the switch.

    An iteration makes 30,000 or 80,000 events, one that ends a tick 300,000, a state 100,000.
    """
    iterations = rng.sample([*range(2, 60), *range(65, 115)], KILLS - 3)
    iterations += [SWITCH - 1, SWITCH, SWITCH + 1]
    saving = rng.sample([True, False], KILLS, counts=[8, 12])
    return [
        Moment(i, rng.randrange(300_000 if i == SWITCH else 100_000), s and i != SWITCH)
        for i, s in zip(sorted(iterations), saving, strict=True)
    ]


def train_quietly(args, moment, notes):
    """A process of its own: train.py with these options, until a moment if one is given."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    if moment is not None:
        kill_at(moment, notes)
    train.main(args)


def kill_at(moment, notes):
    """Let this process be killed at a moment of its training, and note where that was."""
    iterate = training_loop.iterate
    left = moment.events
    run = None

    def count(frame, event, arg):
        nonlocal left
        left -= 1
        if left < 0:
            sys.setprofile(None)
            with open(notes, "a") as file:
                file.write(f"{run.stage.name} {run.nimg} {moment.saving}\n")
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(self):
        nonlocal run
        if run is None and self.state.progress.iteration >= moment.iteration:
            run = self
            while not find_checkpoints(run.run_dir):  # the first is still being written
                time.sleep(0.001)
            if moment.saving:
                threading.setprofile(count)  # of threads that start from now on
            else:
                sys.setprofile(count)
        iterate(self)

    training_loop.iterate = watched


class Trainer:
    """Starts training processes fast: a server imports everything once and is forked."""

    def __init__(self, data, outdir):
        self.outdir = Path(outdir)
        self.notes = self.outdir.with_suffix(".notes")
        self.args = [f"--data={data}", f"--outdir={outdir}", *OPTIONS]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__, *SLOW_TO_IMPORT])

    def start(self, *args, moment=None):
        work = ([*self.args, *args], moment, self.notes)
        process = self.context.Process(target=train_quietly, args=work)
        process.start()
        return process

    @property
    def run_dir(self):
        return next(iter(sorted(self.outdir.glob("0*"))), None)


def parts_of(folder):
    return list(folder.glob(".checkpoint-*.part")) if folder else []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Final run folders of the run that was left alone and of the one that was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))  # of the server
        return whole_and_killed(tmp_path_factory)


def whole_and_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    data = tiny.write_data(folder / "tiny.zip", count=40)
    whole = Trainer(data, folder / "whole").start("--workers=0")
    trainer = Trainer(data, folder / "killed")
    half_written = 0
    for moment in moments(random.Random(0)):
        process = trainer.start("--workers=1", moment=moment)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL, moment
        half_written += bool(parts_of(trainer.run_dir))
    last = trainer.start("--workers=1")
    for process in (whole, last):
        process.join()
        assert process.exitcode == 0
    notes = [line.split() for line in trainer.notes.read_text().splitlines()]
    assert len(notes) == KILLS
    assert {(stage, saving) for stage, _, saving in notes} == {
        (stage, saving) for stage in ("cooperative", "adversarial") for saving in ("True", "False")
    }
    assert half_written >= 3, "some were killed while they wrote a state"
    return Trainer(data, folder / "whole").run_dir, trainer.run_dir


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_one_run_folder(runs):
    for run_dir in runs:
        assert [path.name for path in run_dir.parent.iterdir()] == [run_dir.name]
        assert len(find_checkpoints(run_dir)) == KEPT and not parts_of(run_dir)


def test_every_bit_of_the_state(runs):
    whole, killed = (read_checkpoint(find_checkpoints(run_dir)[0].path) for run_dir in runs)
    assert whole["parts"]["training"]["progress"]["nimg"] == 2000
    assert whole["parts"]["training"]["model"]["augment_p"] > 0
    assert whole["parts"]["training"]["model"]["loss"]["pl_mean"] > 0
    for name, part in whole["parts"].items():
        if name != "reporter":  # holds times
            assert same(part, killed["parts"][name]), name
    assert same(whole["random"], killed["random"])


def test_statistics_have_neither_gaps_nor_repetitions(runs):
    whole, killed = map(ticks, runs)
    assert [tick["Progress/kimg"]["mean"] for tick in whole] == [0.016, 1.008, 2.0]
    for tick, expected in zip(killed, whole, strict=True):
        measured = {
            name for name in expected if not name.startswith(("Timing", "Resources", "time"))
        }
        assert {name: tick[name] for name in measured} == {
            name: expected[name] for name in measured
        }


def test_tensorboard_has_neither_gaps_nor_repetitions(runs):
    for run_dir in runs:
        events = EventAccumulator(str(run_dir)).Reload()
        for name in ("Loss/G/loss", "Progress/tick"):
            assert [event.step for event in events.Scalars(name)] == [0, 1, 2]


def test_log_tells_all_that_was_said(runs):
    whole, killed = (
        [line[:6] for line in (run_dir / "log.txt").read_text().splitlines() if line[:4] == "tick"]
        for run_dir in runs
    )
    assert whole == ["tick 0", "tick 1", "tick 2"]
    assert sorted({*killed}) == whole, "what was lost and done again is told again"


def test_snapshots(runs):
    for kimg in (0, 1, 2):
        whole, killed = (snapshot(run_dir / f"network-snapshot-{kimg:06d}.pkl") for run_dir in runs)
        for name in ("G", "D", "G_ema", "augment_pipe"):
            assert same(whole[name].state_dict(), killed[name].state_dict())
