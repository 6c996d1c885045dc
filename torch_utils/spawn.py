"""Spawn the processes of one task on this machine, and say how they ended."""

import contextlib
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import re
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed import (
    DistError,
    FileStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    spawn,
)

from dnnlib.errors import UserError
from torch_utils.distributed import RANK0_TIMEOUT, SIGNALS, device_of, joined

_GRACE = 10  # seconds for the others to end by themselves when one has failed


class WorkerError(UserError):
    """A process has failed.

    Args:
        message: Of that error, or what became of the process.
        traceback: Of the process, where the message alone would not say enough; else "".
        exit_status: What the program exits with.
    """

    def __init__(self, message: str, traceback: str = "", exit_status: int = 1) -> None:
        super().__init__(message)
        self.traceback, self.exit_status = traceback, exit_status


def run_processes(
    task: Callable[..., Any],
    count: int,
    *args: Any,
    device: str = "cpu",
    timeout: timedelta = RANK0_TIMEOUT,
) -> Any:
    """Run `task(*args)` in this process, or in `count` new ones that form a process group.

    SIGTERM, SIGINT and SIGUSR1 are passed on as they are. A task that has no handler for them ends
    at once, with a WorkerError that says so; a second Ctrl-C ends any: KeyboardInterrupt.

    Args:
        task: A function that can be imported by its name.
        count: Number of processes.
        args: Arguments of `task`; they can be pickled.
        device: "cuda" for a GPU each, whose tensors go through NCCL; "cpu" for none.
        timeout: How long a process may keep the others waiting, unless they wait for rank 0.

    Returns:
        What the task returned on rank 0; it can be pickled.

    Raises:
        WorkerError: One of several processes has failed, or has kept the others waiting; all of
            them have ended. With one process its error comes through as it is.
    """
    if count == 1:
        return task(*args)
    with tempfile.TemporaryDirectory() as name:
        # Results of any size: a pipe would have to be read while the processes end.
        folder = Path(name)
        work = (count, folder, device, timeout, task, args)
        with _spawned(work, count) as (workers, received):
            try:
                while not workers.join(grace_period=_GRACE):
                    pass
            except (ProcessRaisedException, ProcessExitedException) as error:
                codes = [process.exitcode for process in workers.processes]
                raise _worker_error(codes, received, _read_failure(folder), error) from error
        return pickle.loads((folder / "result").read_bytes())


@contextlib.contextmanager
def _spawned(work: tuple, count: int) -> Iterator[tuple[ProcessContext, list[int]]]:
    """Context of new processes and of a list of the signals that were passed on to them.

    They are in groups of their own, so that they have Ctrl-C from here alone. A second one kills
    them.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and number in received
        received.append(number)
        for process in workers.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL if again else number)
        if again:
            raise KeyboardInterrupt

    before = {}
    # Starting that process, which spawning needs, would let signals through.
    multiprocessing.resource_tracker.ensure_running()
    _mask_signals("SIG_BLOCK")  # until there is somebody to pass them on to, who waits, too
    try:
        workers = _start(work, count)
        with contextlib.suppress(ValueError):  # not the main thread
            for number in SIGNALS:
                before[number] = signal.signal(number, pass_on)
    finally:
        _mask_signals("SIG_UNBLOCK")
    try:
        yield workers, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(work: tuple, count: int) -> ProcessContext:
    started = spawn(_worker, work, nprocs=count, join=False)
    assert started is not None, "join=True alone returns nothing"
    return started


def _mask_signals(how: str) -> None:
    """Block the signals that stop a run (SIG_BLOCK), or unblock them (SIG_UNBLOCK)."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(getattr(signal, how), SIGNALS)


def _worker(
    rank: int,
    world_size: int,
    folder: Path,
    device: str,
    timeout: timedelta,
    task: Callable,
    args: tuple,
) -> None:
    """Run the task in one of the processes; the main function of each."""
    _take_signals_from_parent()
    store = FileStore(str(folder / "rendezvous"), world_size)
    with joined(rank, world_size, world_size, store, device_of(rank, device), timeout):
        try:
            value = task(*args)
        except Exception as error:
            _write_failure(folder, error)
            raise
        if rank == 0:
            (folder / "result").write_bytes(pickle.dumps(value))


def _take_signals_from_parent() -> None:
    """Let signals come from the parent alone, and end with it."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may still write to the terminal
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _mask_signals("SIG_UNBLOCK")
    # PyTorch sees to it that a parent which dies from now on sends SIGINT.
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        raise SystemExit(1)


def _write_failure(folder: Path, error: Exception) -> None:
    """Let the parent know why this process fails, unless another one has failed before it."""
    failure = {
        "message": str(error) or type(error).__name__,
        # What the user or the system is to blame for says enough by itself.
        "traceback": "" if isinstance(error, UserError | OSError) else traceback.format_exc(),
        "exit_status": error.exit_status if isinstance(error, UserError) else 1,
        # How a process ends that waits for others in vain.
        "waited": isinstance(error, DistError) or type(error) is RuntimeError,
    }
    with contextlib.suppress(FileExistsError), open(folder / "failure", "x") as file:
        json.dump(failure, file)


def _worker_error(
    codes: list[int | None], received: list[int], failure: dict[str, Any], error: Exception
) -> WorkerError:
    """What to say: stopped by a signal, kept the others waiting, was killed, or failed.

    Args:
        codes: Exit codes by rank; None: it had not ended yet.
        received: Signals that were passed on.
        failure: What `_write_failure` wrote; empty where no process came to that.
        error: What PyTorch raised in this process.
    """
    for number in received:
        if -number in codes:
            return WorkerError(f"stopped by {signal.Signals(number).name}")
    waited = failure.pop("waited", True)
    reported = WorkerError(**failure) if failure else WorkerError(str(error), traceback=str(error))
    if not waited:
        return reported
    killed = _describe_kill(codes)
    if killed and isinstance(error, ProcessExitedException):
        return WorkerError(killed)
    if failure and re.search("timed? ?out", str(reported), re.IGNORECASE):
        line = str(reported).splitlines()[0][-200:]
        return WorkerError(
            f"a process has kept the others waiting for too long ({line})", reported.traceback
        )
    return reported


def _describe_kill(codes: list[int | None]) -> str | None:
    """What to say where a process was killed; those that are left are ended by SIGTERM."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and code != -signal.SIGTERM:
            often = " (often: out of memory)" if code == -signal.SIGKILL else ""
            return (
                f"process {rank} was killed by signal {-code}{often}; try a smaller --batch or "
                "fewer --gpus"
            )
    return None


def _read_failure(folder: Path) -> dict[str, Any]:
    path = folder / "failure"
    return json.loads(path.read_text()) if path.exists() else {}
