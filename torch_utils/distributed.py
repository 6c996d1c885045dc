"""Several processes, on one machine or on many, that work on one task."""

import contextlib
import json
import os
import pickle
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

__all__ = [
    "Processes",
    "WorkerError",
    "add_up",
    "average",
    "device_of",
    "is_first",
    "joined_by_torchrun",
    "run_processes",
    "under_torchrun",
]

_TIMEOUT = timedelta(hours=2)  # one process may compute statistics while the others wait
_patient = []  # the group of all processes, with the longest patience
_GRACE = 10  # seconds for the others to end by themselves when one has failed
_FAILURES = (
    torch.multiprocessing.ProcessRaisedException,
    torch.multiprocessing.ProcessExitedException,
)


class WorkerError(RuntimeError):
    """A process ended with an error; the message is that error's, `kind` the name of its class."""

    kind = ""


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
        torch.distributed.gather_object(value, values)
        return values

    def share(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag whether it is set in any process."""
        if self.count == 1:
            return list(flags)
        seen = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(seen)
        return [count > 0 for count in seen.tolist()]

    def wait_for_first(self) -> None:
        """Wait until all are here, of which the first may take hours."""
        if self.count > 1:
            torch.distributed.barrier(group=_patient[0])

    def first_alone(self, task: Callable[[], Any]) -> Any:
        """What task() returns; the others call it after the first, which may download for them."""
        value = task() if self.first else None
        self.share(None)
        return value if self.first else task()


def average(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its mean over all processes, in place; returns it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
        tensor /= torch.distributed.get_world_size()
    return tensor


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its sum over all processes, in place; returns it."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
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
    timeout: timedelta = _TIMEOUT,
) -> Any:
    """Run ``task(processes, *args)`` in this process, or in `count` new ones that can talk.

    Returns what the task of the first returned. `task` must be importable, and `args` and the
    result picklable. With one process errors come through as they are; with several the first one
    ends all processes and is raised as WorkerError with its own message. So does a process that
    keeps the others waiting for `timeout`. Signals that ask to stop are passed on.

    Messages go through gloo on the CPU; tensors on GPUs, for a `device` "cuda", through NCCL.
    """
    if count == 1:
        return task(Processes(), *args)
    with tempfile.TemporaryDirectory() as name:
        # Results of any size: a pipe would have to be read while the processes end.
        folder = Path(name)
        spawned = torch.multiprocessing.spawn(
            _work, (count, folder, device, timeout, task, args), nprocs=count, join=False
        )
        try:
            with _signals_passed_on(spawned.processes):
                while not spawned.join(grace_period=_GRACE):
                    pass
        except _FAILURES as error:
            codes = [process.exitcode for process in spawned.processes]
            raise _worker_error(codes, _read_reason(folder), error) from error
        return pickle.loads((folder / "result").read_bytes())


@contextlib.contextmanager
def _signals_passed_on(processes: list) -> Iterator[None]:
    """Context in which this process asks the others to stop when it is asked to.

    They get SIGTERM for Ctrl-C, too: in a terminal they have had that already, and twice means at
    once. A second Ctrl-C kills them.
    """
    seen = []

    def pass_on(number, frame):
        for process in processes:
            if process.is_alive():
                process.kill() if number == signal.SIGINT in seen else process.terminate()
        seen.append(number)

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def under_torchrun() -> bool:
    """Whether torchrun, or a launcher like it, has started this process among others."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextlib.contextmanager
def joined_by_torchrun(device: str, timeout: timedelta = _TIMEOUT) -> Iterator[Processes]:
    """Context in which this process can talk to all that torchrun has started, on any machine."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_RANK", rank))
    with _joined(rank, count, "env://", device_of(local, device), timeout):
        yield Processes(rank, count)


def _work(
    rank: int,
    count: int,
    folder: Path,
    device: str,
    timeout: timedelta,
    task: Callable,
    args: tuple,
) -> None:
    with _joined(rank, count, f"file://{folder / 'meeting'}", device_of(rank, device), timeout):
        try:
            value = task(Processes(rank, count), *args)
        except Exception as error:
            reason = {"kind": type(error).__name__, "message": str(error) or type(error).__name__}
            with contextlib.suppress(FileExistsError), open(folder / "reason", "x") as file:
                json.dump(reason, file)  # the others fail as a consequence
            raise
        if rank == 0:
            (folder / "result").write_bytes(pickle.dumps(value))


def _worker_error(codes: list[int | None], reason: dict, error: Exception) -> WorkerError:
    """What to say: a process kept the others waiting, was killed, or failed by itself."""
    message = reason.get("message", str(error))
    if re.search("timed? ?out", message, re.IGNORECASE):
        return WorkerError(
            f"a process has kept the others waiting for too long ({message.splitlines()[0][-200:]})"
        )
    if killed := _killed(codes):
        return WorkerError(killed)
    told = WorkerError(message)
    told.kind = reason.get("kind", "")
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


def _read_reason(folder: Path) -> dict[str, str]:
    path = folder / "reason"
    return json.loads(path.read_text()) if path.exists() else {}


@contextlib.contextmanager
def _joined(
    rank: int, count: int, meeting: str, device: torch.device, timeout: timedelta
) -> Iterator[None]:
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    torch.distributed.init_process_group(
        backend, init_method=meeting, rank=rank, world_size=count, timeout=timeout
    )
    _patient.append(torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT))
    try:
        torch.distributed.barrier()  # nobody leaves before all have met
        yield
    finally:
        _patient.clear()
        torch.distributed.destroy_process_group()
