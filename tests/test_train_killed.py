"""A run that is killed again and again is, bit by bit, the run that was not."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests import tiny
from tests.train_cli import snapshot, ticks
from training.checkpoint import KEPT, find_states, read_state

ROOT = Path(train.__file__).parent
KILLS = 20
SLOW_TO_IMPORT = ("training.training_loop", "torch.utils.tensorboard", "torch._dynamo")
# Everything that remembers something: ADA, path lengths, power iterations, moments, look-ahead.
OPTIONS = (
    "--cfg=digits", "--kimg=2", "--coop-kimg=1", "--coop-steps=2", "--batch=16", "--device=cpu",
    "--g-scale=0.001953125", "--d-scale=0.001953125", "--gamma=1", "--pl-weight=2", "--aug=ada",
    "--style-mixing=0.9", "--zcr=1", "--sn=1", "--brc-lookahead=1", "--save-minutes=0.0005",
    "--snap=1", "--ops=ref",
)  # fmt: skip


def train_quietly(args):
    """A process of its own: train.py with these options."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    train.main(args)


class Trainer:
    """Starts training processes fast: a server imports everything once and is forked."""

    def __init__(self, data, outdir):
        self.outdir = Path(outdir)
        self.args = [f"--data={data}", f"--outdir={outdir}", *OPTIONS]
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__, *SLOW_TO_IMPORT])

    def start(self, *args):
        process = self.context.Process(target=train_quietly, args=([*self.args, *args],))
        process.start()
        return process

    @property
    def run_dir(self):
        return next(iter(sorted(self.outdir.glob("0*"))), None)


def wait_for(condition, process, seconds=60):
    """Wait until `condition()` is true or the process has ended."""
    end = time.monotonic() + seconds
    while process.is_alive() and not condition() and time.monotonic() < end:
        time.sleep(0.002)


def parts_of(folder):
    return list(folder.glob(".training-state-*.part")) if folder else []


def kill_at_a_random_moment(trainer, process, rng, while_saving):
    """Returns whether a half-written state was left behind."""
    before = set(parts_of(trainer.run_dir))
    known = {state.path for state in find_states(trainer.run_dir)} if trainer.run_dir else set()
    wait_for(
        lambda: trainer.run_dir and {state.path for state in find_states(trainer.run_dir)} - known,
        process,
    )
    time.sleep(rng.uniform(0, 0.4))
    if while_saving:
        wait_for(lambda: set(parts_of(trainer.run_dir)) - before, process)
    process.kill()
    process.join()
    return bool(parts_of(trainer.run_dir))


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
    rng, trainer = random.Random(0), Trainer(data, folder / "killed")
    half_written = kills = 0
    for attempt in range(KILLS):
        process = trainer.start("--workers=1")
        half_written += kill_at_a_random_moment(trainer, process, rng, attempt % 3 == 0)
        kills += process.exitcode == -signal.SIGKILL
    last = trainer.start("--workers=1")
    for process in (whole, last):
        process.join()
        assert process.exitcode == 0
    assert half_written >= 3, "some were killed while they saved"
    assert kills == KILLS, "the run was not over before"
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
        assert len(find_states(run_dir)) == KEPT and not parts_of(run_dir)


def test_every_bit_of_the_state(runs):
    whole, killed = (read_state(find_states(run_dir)[0].path) for run_dir in runs)
    assert whole["parts"]["training"]["nimg"] == 2000
    assert whole["parts"]["training"]["augment_p"] > 0
    assert whole["parts"]["loss"]["pl_mean"] > 0
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


def test_log_tells_every_tick_once(runs):
    for run_dir in runs:
        lines = (run_dir / "log.txt").read_text().splitlines()
        assert [line[:6] for line in lines if line.startswith("tick")] == [
            f"tick {i}" for i in range(3)
        ]


def test_snapshots(runs):
    for kimg in (0, 1, 2):
        whole, killed = (snapshot(run_dir / f"network-snapshot-{kimg:06d}.pkl") for run_dir in runs)
        for name in ("G", "D", "G_ema", "augment_pipe"):
            assert same(whole[name].state_dict(), killed[name].state_dict())
