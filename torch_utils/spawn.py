"""New processes on this machine that work on one task together, and how they end."""

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
from typing import Any

import torch
import torch.multiprocessing
from torch.distributed import DistError

from dnnlib.errors import UserError
from torch_utils.distributed import PATIENCE, SIGNALS, device_of, joined

_GRACE = 10  # seconds for the others to end by themselves when one has failed
_FAILURES = (
    torch.multiprocessing.ProcessRaisedException,
    torch.multiprocessing.ProcessExitedException,
)


class WorkerError(UserError):
    """A process ended with an error.

    Args:
        message: Of that error, or what became of the process.
        traceback: Of the process, where the message alone would not say enough; else "".
        exit_status: Of the program that ends by it.
    """

    def __init__(self, message: str, traceback: str = "", exit_status: int = 1):
        super().__init__(message)
        self.traceback, self.exit_status = traceback, exit_status


def run_processes(
    task: Callable[..., Any],
    count: int,
    *args: Any,
    device: str = "cpu",
    timeout: timedelta = PATIENCE,
) -> Any:
    """Run ``task(*args)`` in this process, or in `count` new ones that can talk.

    Returns what the task of the first returned. `task` must be importable, and `args` and the
    result picklable. With one process errors come through as they are; with several the first one
    ends all processes and is raised as WorkerError with its own message. So does a process that
    keeps the others waiting for `timeout`, but where they wait for the first.

    SIGTERM, SIGINT and SIGUSR1 are passed on as they are. A task that has no handler for them ends
    at once, with a WorkerError that says so; a second Ctrl-C ends any: KeyboardInterrupt.

    Messages go through gloo on the CPU; tensors on GPUs, for a `device` "cuda", through NCCL.
    """
    if count == 1:
        return task(*args)
    with tempfile.TemporaryDirectory() as name:
        # Results of any size: a pipe would have to be read while the processes end.
        folder = Path(name)
        work = (count, folder, device, timeout, task, args)
        with _spawned(work, count) as (workers, came):
            try:
                while not workers.join(grace_period=_GRACE):
                    pass
            except _FAILURES as error:
                codes = [process.exitcode for process in workers.processes]
                raise _worker_error(codes, came, _read_reason(folder), error) from error
        return pickle.loads((folder / "result").read_bytes())


@contextlib.contextmanager
def _spawned(work: tuple, count: int) -> Iterator[tuple[Any, list[int]]]:
    """Context of new processes and of a list of the signals that were passed on to them.

    They are in groups of their own, so that they have Ctrl-C from here alone. A second one kills
    them.
    """
    came: list[int] = []

    def pass_on(number, frame):
        again = number == signal.SIGINT and number in came
        came.append(number)
        for process in workers.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL if again else number)
        if again:
            raise KeyboardInterrupt

    before = {}
    # Starting that process, which spawning needs, would let signals through.
    multiprocessing.resource_tracker.ensure_running()
    _let_signals("SIG_BLOCK")  # until there is somebody to pass them on to, who waits, too
    try:
        workers = torch.multiprocessing.spawn(_work, work, nprocs=count, join=False)
        with contextlib.suppress(ValueError):  # not the main thread
            for number in SIGNALS:
                before[number] = signal.signal(number, pass_on)
    finally:
        _let_signals("SIG_UNBLOCK")
    try:
        yield workers, came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_signals(how: str) -> None:
    """Block the signals that stop a run, or unblock them."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(getattr(signal, how), SIGNALS)


def _work(
    rank: int,
    count: int,
    folder: Path,
    device: str,
    timeout: timedelta,
    task: Callable,
    args: tuple,
) -> None:
    _stand_alone()
    store = torch.distributed.FileStore(str(folder / "meeting"), count)
    with joined(rank, count, count, store, device_of(rank, device), timeout):
        try:
            value = task(*args)
        except Exception as error:
            _leave_reason(folder, error)
            raise
        if rank == 0:
            (folder / "result").write_bytes(pickle.dumps(value))


def _stand_alone() -> None:
    """Make this process one that only its parent sends signals to, and that ends with it."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may still write to the terminal
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _let_signals("SIG_UNBLOCK")
    # PyTorch sees to it that a parent which dies from now on sends SIGINT.
    if not multiprocessing.parent_process().is_alive():
        raise SystemExit(1)


def _leave_reason(folder: Path, error: Exception) -> None:
    """Let the parent know why this process fails, unless another one has failed before it."""
    expected = isinstance(error, UserError)
    reason = {
        "message": str(error) or type(error).__name__,
        "traceback": "" if expected else traceback.format_exc(),
        "exit_status": error.exit_status if expected else 1,
        # How a process ends that waits for others in vain.
        "waited": isinstance(error, DistError) or type(error) is RuntimeError,
    }
    with contextlib.suppress(FileExistsError), open(folder / "reason", "x") as file:
        json.dump(reason, file)


def _worker_error(
    codes: list[int | None], came: list[int], reason: dict[str, Any], error: Exception
) -> WorkerError:
    """What to say: stopped by a signal, kept the others waiting, was killed, or failed."""
    for number in came:
        if -number in codes:
            return WorkerError(f"stopped by {signal.Signals(number).name}")
    waited = reason.pop("waited", True)
    told = WorkerError(**reason) if reason else WorkerError(str(error), traceback=str(error))
    if not waited:
        return told
    killed = _killed(codes)
    if killed and isinstance(error, torch.multiprocessing.ProcessExitedException):
        return WorkerError(killed)
    if reason and re.search("timed? ?out", str(told), re.IGNORECASE):
        line = str(told).splitlines()[0][-200:]
        return WorkerError(
            f"a process has kept the others waiting for too long ({line})", told.traceback
        )
    return told


def _killed(codes: list[int | None]) -> str | None:
    """What to say where a process was killed; those that are left are ended by SIGTERM."""
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and code != -signal.SIGTERM:
            often = " (often: out of memory)" if code == -signal.SIGKILL else ""
            return (
                f"process {rank} was killed by signal {-code}{often}; try a smaller --batch or "
                "fewer --gpus"
            )
    return None


def _read_reason(folder: Path) -> dict[str, Any]:
    path = folder / "reason"
    return json.loads(path.read_text()) if path.exists() else {}
