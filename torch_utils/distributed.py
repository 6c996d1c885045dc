"""Several processes on one machine that work on one task."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

__all__ = ["Processes", "WorkerError", "device_of", "run_processes"]

_TIMEOUT = timedelta(hours=2)  # one process may compute statistics while the others wait


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


def device_of(rank: int, device: str | torch.device) -> torch.device:
    """The device of one of several processes: a GPU each, or the CPU for all."""
    device = torch.device(device)
    return torch.device("cuda", rank) if device.type == "cuda" else device


def run_processes(task: Callable[..., Any], count: int, *args: Any) -> Any:
    """Run ``task(processes, *args)`` in this process, or in `count` new ones that can talk.

    Returns what the task of the first returned. `task` must be importable, and `args` and the
    result picklable. With one process errors come through as they are; with several the first one
    ends all processes and is raised as WorkerError with its own message.

    Small messages go through gloo on the CPU whatever the device; tensors on GPUs may use NCCL.
    """
    if count == 1:
        return task(Processes(), *args)
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{os.path.join(folder, 'meeting')}"
        try:
            torch.multiprocessing.spawn(
                _work, (count, meeting, results, task, args), nprocs=count, join=True
            )
        except torch.multiprocessing.ProcessRaisedException as error:
            message = results.get() if not results.empty() else str(error)
            raise WorkerError(message) from error
    return results.get()


def _work(rank: int, count: int, meeting: str, results: Any, task: Callable, args: tuple) -> None:
    with _joined(rank, count, meeting):
        try:
            value = task(Processes(rank, count), *args)
        except Exception as error:
            results.put(str(error) or type(error).__name__)
            raise
        if rank == 0:
            results.put(value)


@contextlib.contextmanager
def _joined(rank: int, count: int, meeting: str) -> Iterator[None]:
    backend = "gloo"
    if torch.cuda.is_available() and torch.cuda.device_count() >= count:
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(rank)
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    torch.distributed.init_process_group(
        backend, init_method=meeting, rank=rank, world_size=count, timeout=_TIMEOUT
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
