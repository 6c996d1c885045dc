"""Several processes, on one machine or on many, that work on one task."""

import contextlib
import json
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import re
import secrets
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.rendezvous import rendezvous

__all__ = [
    "SIGNALS",
    "Processes",
    "WorkerError",
    "add_up",
    "average",
    "device_of",
    "gpus_needed",
    "is_first",
    "joined_by_torchrun",
    "run_processes",
    "under_torchrun",
]

_PATIENCE = timedelta(hours=24)  # one process may download or measure while the others wait
_MEETING = timedelta(minutes=10)  # for all to start; longer where `timeout` is
_GRACE = 10  # seconds for the others to end by themselves when one has failed
# Of process managers, of Ctrl-C, and Slurm's warning before the time is up (--signal=USR1@120).
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
# Two groups of all processes: "steps" ends with an error after the timeout, "patient" much later.
_groups = {}
# Errors that end a process which waits for others in vain.
_OF_TALKING = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")
_FAILURES = (
    torch.multiprocessing.ProcessRaisedException,
    torch.multiprocessing.ProcessExitedException,
)


class WorkerError(RuntimeError):
    """A process ended with an error: its message, class and bases by name, traceback, errno."""

    def __init__(self, message: str, kinds=(), traceback: str = "", errno: int | None = None):
        super().__init__(message)
        self.kinds, self.traceback, self.errno = list(kinds), traceback, errno


@dataclass(frozen=True)
class Processes:
    """This process among `count` that run the same program; the default is one that is alone."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes in the order of their ranks; None but on the first."""
        if self.count == 1:
            return [value]
        values = [None] * self.count if self.first else None
        torch.distributed.gather_object(value, values, group=_groups["steps"])
        return values

    def exchange(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on all of them."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=_groups["steps"])
        return values

    def share(self, value: Any) -> Any:
        """The first process's value, on all of them; it may take hours to make."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, group=_groups["patient"])
        return values[0]

    def on_first(self, task: Callable[[], Any]) -> Any:
        """What task() returns on the first, which alone calls it while they wait; None on others.

        Where it fails the first raises its error, and the others SystemExit: the first has told.
        """
        value, failed = None, True
        try:
            if self.first:
                value = task()
            failed = False
        finally:
            failed = self.share(failed)
        if failed:
            raise SystemExit(1)
        return value

    def of_first(self, task: Callable[[], Any]) -> Any:
        """As `on_first`, but the others get the value, too; it is pickled for them."""
        return self.share(self.on_first(task))

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag whether it is set in any process."""
        if self.count == 1:
            return list(flags)
        seen = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(seen, group=_groups["steps"])
        return [count > 0 for count in seen.tolist()]

    def wait_for_first(self) -> None:
        """Wait until all are here, of which the first may take hours."""
        if self.count > 1:
            torch.distributed.barrier(group=_groups["patient"])

    def first_alone(self, task: Callable[[], Any]) -> Any:
        """What task() returns; the others call it after the first, which may download for them.

        The first may take hours, and so may the others after it. Where it fails, they end.
        """
        value = self.on_first(task)
        if not self.first:
            value = task()
        self.wait_for_first()
        return value


def average(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its mean over all processes, in place; returns it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor, group=_groups["steps"])
        tensor /= torch.distributed.get_world_size()
    return tensor


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its sum over all processes, in place; returns it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor, group=_groups["steps"])
    return tensor


def is_first() -> bool:
    """Whether this process is the first of those that train together."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def device_of(rank: int, device: str | torch.device) -> torch.device:
    """The device of one of several processes: a GPU each, or the CPU for all."""
    device = torch.device(device)
    return torch.device("cuda", rank) if device.type == "cuda" else device


def run_processes(
    task: Callable[..., Any],
    count: int,
    *args: Any,
    device: str = "cpu",
    timeout: timedelta = _PATIENCE,
) -> Any:
    """Run ``task(processes, *args)`` in this process, or in `count` new ones that can talk.

    Returns what the task of the first returned. `task` must be importable, and `args` and the
    result picklable. With one process errors come through as they are; with several the first one
    ends all processes and is raised as WorkerError with its own message. So does a process that
    keeps the others waiting for `timeout`, but where they wait for the first.

    SIGTERM, SIGINT and SIGUSR1 are passed on as they are. A task that has no handler for them ends
    at once, with a WorkerError that says so; a second Ctrl-C ends any: KeyboardInterrupt.

    Messages go through gloo on the CPU; tensors on GPUs, for a `device` "cuda", through NCCL.
    """
    if count == 1:
        return task(Processes(), *args)
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


def under_torchrun() -> bool:
    """Whether torchrun, or a launcher like it, has started this process among others."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def gpus_needed(count: int) -> int:
    """How many GPUs this machine must have for ``count`` processes, as far as this one knows."""
    return _local_rank() + 1 if under_torchrun() else count


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))


@contextlib.contextmanager
def joined_by_torchrun(device: str, timeout: timedelta = _PATIENCE) -> Iterator[Processes]:
    """Context in which this process can talk to all that torchrun has started, on any machine."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    store, *_ = next(rendezvous("env://", rank, count, timeout=max(timeout, _MEETING)))
    store = _of_this_attempt(store, rank, count, max(timeout, _MEETING))
    with _joined(rank, count, here, store, device_of(_local_rank(), device), timeout):
        yield Processes(rank, count)


def _of_this_attempt(
    store: torch.distributed.Store, rank: int, count: int, timeout: timedelta
) -> torch.distributed.Store:
    """What of a store only those see that have started together.

    torchrun starts processes again with the store of those that died, whose addresses it holds.
    All say who they are, and agree when each has seen the same names, its own among them.
    """
    store.set(f"name of {rank}", secrets.token_hex(8))
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        names = store.multi_get([f"name of {other}" for other in range(count)])
        attempt = torch.distributed.PrefixStore(b" ".join(names).decode(), store)
        attempt.set(f"seen by {rank}", "")
        if attempt.check([f"seen by {other}" for other in range(count)]):
            return attempt
        time.sleep(0.05)  # some names are of the dead
    raise TimeoutError(f"not all of the {count} processes have started: timed out")


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
    with _joined(rank, count, count, store, device_of(rank, device), timeout):
        try:
            value = task(Processes(rank, count), *args)
        except Exception as error:
            reason = {
                "message": str(error) or type(error).__name__,
                "kinds": [base.__name__ for base in type(error).__mro__],
                "traceback": traceback.format_exc(),
                "errno": getattr(error, "errno", None),
            }
            with contextlib.suppress(FileExistsError), open(folder / "reason", "x") as file:
                json.dump(reason, file)  # the others fail as a consequence
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


def _worker_error(
    codes: list[int | None], came: list[int], reason: dict, error: Exception
) -> WorkerError:
    """What to say: stopped by a signal, kept the others waiting, was killed, or failed."""
    for number in came:
        if -number in codes:
            return WorkerError(f"stopped by {signal.Signals(number).name}", [WorkerError.__name__])
    told = WorkerError(**reason) if reason else WorkerError(str(error), traceback=str(error))
    if told.kinds and told.kinds[0] not in _OF_TALKING:
        return told
    killed = _killed(codes)
    if killed and isinstance(error, torch.multiprocessing.ProcessExitedException):
        return WorkerError(killed, [WorkerError.__name__])
    if reason and re.search("timed? ?out", str(told), re.IGNORECASE):
        line = str(told).splitlines()[0][-200:]
        return WorkerError(
            f"a process has kept the others waiting for too long ({line})", traceback=told.traceback
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


@contextlib.contextmanager
def _joined(
    rank: int,
    count: int,
    here: int,
    store: torch.distributed.Store,
    device: torch.device,
    timeout: timedelta,
) -> Iterator[None]:
    """Context in which `count` processes can talk, `here` of them on this machine."""
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    if "OMP_NUM_THREADS" not in os.environ:  # which says it for each process, as torchrun does
        torch.set_num_threads(max(1, torch.get_num_threads() // here))
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=count, timeout=max(timeout, _MEETING)
    )
    _groups["steps"] = torch.distributed.new_group(backend=backend, timeout=timeout)
    _groups["patient"] = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        torch.distributed.barrier()  # nobody leaves before all have met
        yield
    finally:
        _groups.clear()
        torch.distributed.destroy_process_group()
