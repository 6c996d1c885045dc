"""Faults that benchmarks/soak.py injects into a process of train.py.

A fault is a function of (`Trainer`, --outdir, random.Random) that returns whether it took place; it
notes in `Trainer.may_end_with` which exit codes it may bring about.
"""

import contextlib
import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from torch_utils.distributed import SIGNALS
from training.run.checkpoint_file import (
    KEPT,
    CheckpointError,
    CheckpointFile,
    find_checkpoints,
    read_checkpoint,
)

FULL_DISK_BYTES = 4096
PATIENCE = 120  # seconds that a process may take to end after a signal
PIPE_BYTES = 1 << 20  # what a process may say: nobody reads before it has ended

Damage = Callable[[bytearray, Random], bytearray]  # from a whole file to a damaged one


class Trainer:
    """A process of train.py; as a context manager it leaves no process behind on an error.

    Args:
        command: Its command line.
        nimg: Images that the run sees.
    """

    def __init__(self, command: Sequence[str], nimg: int) -> None:
        self.nimg = nimg
        self.faults: list[str] = []  # that were injected
        self.may_end_with: set[int | None] = {0}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            bufsize=0,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the soak alone
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        # A pipe, as a file would be a part of the full disk; not read to its end, as workers that
        # have lost their process hold it open for some seconds.
        fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._output.fileno(), False)
        self._heard = b""

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.said()
        self._output.close()

    @property
    def _output(self) -> IO[bytes]:
        assert self.process.stdout is not None, "it is a pipe"
        return self.process.stdout

    def said(self) -> str:
        """All output so far."""
        if not self._output.closed:
            self._heard += self._output.read() or b""
        return self._heard.decode(errors="replace")

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        return self.process.wait()

    def ends_within(self, seconds: float) -> bool:
        """Wait that long; returns whether the process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.code is not None

    def kill(self) -> bool:
        """Returns whether that, and nothing before it, has ended the process."""
        self.process.kill()
        self.may_end_with.add(-signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL

    @property
    def code(self) -> int | None:
        """Exit code, or None."""
        return self.process.poll()

    @property
    def trains(self) -> bool:
        """Whether it has come to its first iteration."""
        return "stage from kimg" in self.said()

    @property
    def refused(self) -> bool:
        """Whether it has found no whole checkpoint, and said so in one line."""
        *_, line = self.said().strip().splitlines() or [""]
        message = r"Error: .* holds no checkpoint that can be used; start a new run: .*"
        return self.code == 1 and re.fullmatch(message, line) is not None and not self.trains

    @property
    def ended_well(self) -> bool:
        """By itself or by a fault, and without a traceback: an error is told in one line.

        What was killed says nothing any more, but its workers may, of a connection that is lost.
        """
        if self.code == -signal.SIGKILL:
            return self.code in self.may_end_with
        *_, line = self.said().strip().splitlines() or [""]
        if "Traceback" in self.said():
            return False
        one_line = self.code != 1 or line.startswith("Error: ")
        return self.refused or (self.code in self.may_end_with and one_line)


def run_dir_of(outdir: Path) -> Path:
    """The newest run folder: one that lost its process before its first checkpoint is left."""
    return max(outdir.glob("0*"), default=outdir)


def find_run_checkpoints(outdir: Path) -> list[CheckpointFile]:
    """Checkpoints of the newest run below `outdir`, the newest first."""
    return find_checkpoints(run_dir_of(outdir))


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read."""
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def is_finished(outdir: Path, nimg: int) -> bool:
    """Whether the run has seen all its images, and saved that."""
    found = find_run_checkpoints(outdir)
    return bool(found) and found[0].nimg >= nimg and is_whole(found[0].path)


def kill(trainer: Trainer, outdir: Path, rng: Random) -> bool:
    """At any moment."""
    return trainer.kill()


def kill_while_saving(trainer: Trainer, outdir: Path, rng: Random) -> bool:
    """With a half-written checkpoint."""
    patience = time.monotonic() + 20
    while trainer.code is None and time.monotonic() < patience:
        if list(outdir.glob("0*/.checkpoint-*.part")):
            return trainer.kill()
        time.sleep(0.001)
    return False


def send(numbers: tuple[signal.Signals, ...], trainer: Trainer, outdir: Path, rng: Random) -> bool:
    """One signal or two, as process managers and Ctrl-C ask a job to end."""
    if not trainer.trains:
        return False  # signals are noted once training begins
    for number in numbers:
        trainer.process.send_signal(number)
        time.sleep(rng.uniform(0, 0.3))
    if not trainer.ends_within(PATIENCE):
        trainer.process.kill()  # without trainer.kill(): it should have ended otherwise
    elif numbers == (signal.SIGINT, signal.SIGINT):
        trainer.may_end_with.add(-signal.SIGINT)  # the second one ends it at once
    elif is_finished(outdir, trainer.nimg):
        trainer.may_end_with.add(trainer.code)  # it came too late to be noted
        return False
    return True


def send_two(trainer: Trainer, outdir: Path, rng: Random) -> bool:
    """The same one twice, or two of them."""
    return send((rng.choice(SIGNALS), rng.choice(SIGNALS)), trainer, outdir, rng)


def kill_workers(trainer: Trainer, outdir: Path, rng: Random) -> bool:
    """As the kernel does where memory is short; training continues."""
    try:
        workers = psutil.Process(trainer.process.pid).children()
        for worker in workers:
            worker.kill()
    except psutil.NoSuchProcess:
        return False
    return bool(workers)


def fill_disk(trainer: Trainer, outdir: Path, rng: Random) -> bool:
    """For some seconds: the third failed save ends the run, two of them do not."""
    pid = trainer.process.pid
    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, hard))
        trainer.may_end_with.add(1)
        if not trainer.ends_within(rng.uniform(3, 20)):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
    except ProcessLookupError:
        return False
    return True


def damage_checkpoints(
    how: Damage, every: bool, trainer: Trainer, outdir: Path, rng: Random
) -> bool:
    """Kill, then damage the newest checkpoint, or each."""
    if len(find_run_checkpoints(outdir)) < KEPT or not trainer.kill():
        return False
    if is_finished(outdir, trainer.nimg):
        return False  # there is nothing to resume
    found = find_run_checkpoints(outdir)
    for checkpoint in found if every else found[:1]:
        checkpoint.path.write_bytes(how(bytearray(checkpoint.path.read_bytes()), rng))
    return True


def truncated(data: bytearray, rng: Random) -> bytearray:
    """Cut off anywhere."""
    return data[: rng.randrange(len(data))]


def flipped(data: bytearray, rng: Random) -> bytearray:
    """One bit is another."""
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


FAULTS: dict[str, Callable[[Trainer, Path, Random], bool]] = {
    "killed": kill,
    "killed while saving": kill_while_saving,
    **{number.name: partial(send, (number,)) for number in SIGNALS},
    "two signals": send_two,
    "worker killed": kill_workers,
    "full disk": fill_disk,
    "newest state truncated": partial(damage_checkpoints, truncated, False),
    "newest state bit-flipped": partial(damage_checkpoints, flipped, False),
    "all checkpoints damaged": partial(damage_checkpoints, flipped, True),
}
