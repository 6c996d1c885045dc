"""Several processes on one machine that work on one task."""

import contextlib
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

__all__ = ["Processes", "WorkerError", "device_of", "run_processes"]

_TIMEOUT = timedelta(hours=2)  # one process may compute statistics while the others wait
_FAILURES = (
    torch.multiprocessing.ProcessRaisedException,
    torch.multiprocessing.ProcessExitedException,
)


class WorkerError(RuntimeError):
    """A process ended with an error; the message is that error's."""


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

    def first_alone(self, task: Callable[[], Any]) -> Any:
        """What task() returns; the others call it after the first, which may download for them."""
        value = task() if self.first else None
        self.share(None)
        return value if self.first else task()


def device_of(rank: int, device: str | torch.device) -> torch.device:
    """The device of one of several processes: a GPU each, or the CPU for all."""
    device = torch.device(device)
    return torch.device("cuda", rank) if device.type == "cuda" else device


def run_processes(task: Callable[..., Any], count: int, *args: Any) -> Any:
    """Run ``task(processes, *args)`` in this process, or in `count` new ones that can talk.

    Returns what the task of the first returned. `task` must be importable, and `args` and the
    result picklable. With one process errors come through as they are; with several the first one
    ends all processes and is raised as WorkerError with its own message.

    Messages go through gloo on the CPU whatever the device.
    """
    if count == 1:
        return task(Processes(), *args)
    with tempfile.TemporaryDirectory() as name:
        # Results of any size: a pipe would have to be read while the processes end.
        folder = Path(name)
        spawned = torch.multiprocessing.spawn(
            _work, (count, folder, task, args), nprocs=count, join=False
        )
        try:
            while not spawned.join():
                pass
        except _FAILURES as error:
            killed = _killed([process.exitcode for process in spawned.processes])
            raise WorkerError(killed or _read_reason(folder) or str(error)) from error
        return pickle.loads((folder / "result").read_bytes())


def _work(rank: int, count: int, folder: Path, task: Callable, args: tuple) -> None:
    with _joined(rank, count, f"file://{folder / 'meeting'}"):
        try:
            value = task(Processes(rank, count), *args)
        except Exception as error:
            with contextlib.suppress(FileExistsError), open(folder / "reason", "x") as file:
                file.write(str(error) or type(error).__name__)  # the others fail as a consequence
            raise
        if rank == 0:
            (folder / "result").write_bytes(pickle.dumps(value))


def _killed(exit_codes: list[int | None]) -> str | None:
    """What to say where a process was killed; those that are left are ended by SIGTERM."""
    for rank, code in enumerate(exit_codes):
        if code is not None and code < 0 and code != -signal.SIGTERM:
            return (
                f"process {rank} was killed by signal {-code} (often: out of memory); try a "
                "smaller --batch or fewer --gpus"
            )
    return None


def _read_reason(folder: Path) -> str | None:
    path = folder / "reason"
    return path.read_text() if path.exists() else None


@contextlib.contextmanager
def _joined(rank: int, count: int, meeting: str) -> Iterator[None]:
    if torch.cuda.is_available() and torch.cuda.device_count() >= count:
        torch.cuda.set_device(rank)
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=count, timeout=_TIMEOUT
    )
    try:
        torch.distributed.barrier()  # nobody leaves before all have met
        yield
    finally:
        torch.distributed.destroy_process_group()
