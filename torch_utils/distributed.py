"""Several processes, on one machine or on many, that work on one task.

Everything here is called by all of them together, and does what it should in a process alone.
"""

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch.distributed.rendezvous import rendezvous

PATIENCE = timedelta(hours=24)  # one process may download or measure while the others wait
_MEETING = timedelta(minutes=10)  # for all to start; longer where `timeout` is
# Of process managers, of Ctrl-C, and Slurm's warning before the time is up (--signal=USR1@120).
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
# Two groups of all processes: "steps" ends with an error after the timeout, "patient" much later.
# Empty in a process that is alone.
_groups: dict[str, Any] = {}

T = TypeVar("T")


def get_rank() -> int:
    """Which of the processes this is; 0 in one that is alone."""
    return torch.distributed.get_rank() if _groups else 0


def get_world_size() -> int:
    """How many processes there are, on all machines together."""
    return torch.distributed.get_world_size() if _groups else 1


def is_rank0() -> bool:
    """Whether this is the process that reports and writes."""
    return get_rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Context in which this process works as if there were no others, who do not wait for it."""
    groups = dict(_groups)
    _groups.clear()
    try:
        yield
    finally:
        _groups.update(groups)


def gather(value: T) -> list[T] | None:
    """The values of all processes in the order of their ranks; None on all but rank 0."""
    if not _groups:
        return [value]
    values: list[Any] | None = [None] * get_world_size() if is_rank0() else None
    torch.distributed.gather_object(value, values, group=_groups["steps"])
    return values


def all_gather(value: T) -> list[T]:
    """The values of all processes in the order of their ranks, on all of them."""
    if not _groups:
        return [value]
    values: list[Any] = [None] * get_world_size()
    torch.distributed.all_gather_object(values, value, group=_groups["steps"])
    return values


def broadcast(value: T) -> T:
    """The value of rank 0, on all of them; it may take hours to make."""
    if not _groups:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, group=_groups["patient"])
    return values[0]


def run_on_rank0(task: Callable[[], T]) -> T | None:
    """What task() returns on rank 0, which alone calls it while the others wait; None on these.

    Where it fails rank 0 raises its error, and the others SystemExit: rank 0 has told.
    """
    value, failed = None, True
    try:
        if is_rank0():
            value = task()
        failed = False
    finally:
        failed = broadcast(failed)
    if failed:
        raise SystemExit(1)
    return value


def broadcast_from_rank0(task: Callable[[], T]) -> T:
    """As `run_on_rank0`, but the others get the value, too; it is pickled for them."""
    return broadcast(run_on_rank0(task))


def rank0_first(task: Callable[[], T]) -> T:
    """What task() returns; the others call it after rank 0, which may download for them.

    Rank 0 may take hours, and so may the others after it. Where it fails, they end.
    """
    value = run_on_rank0(task)
    if not is_rank0():
        value = task()
    wait_for_rank0()
    return value


def any_rank(*flags: bool) -> list[bool]:
    """Of each flag whether it is set in any process."""
    if not _groups:
        return list(flags)
    seen = torch.tensor(flags, dtype=torch.int32)
    torch.distributed.all_reduce(seen, group=_groups["steps"])
    return [count > 0 for count in seen.tolist()]


def wait_for_rank0() -> None:
    """Wait until all are here, of which rank 0 may take hours."""
    if _groups:
        torch.distributed.barrier(group=_groups["patient"])


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its mean over all processes, in place; returns it."""
    if _groups:
        all_reduce_sum(tensor)
        tensor /= get_world_size()
    return tensor


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor by its sum over all processes, in place; returns it."""
    if _groups:
        torch.distributed.all_reduce(tensor, group=_groups["steps"])
    return tensor


def device_of(rank: int, device: str | torch.device) -> torch.device:
    """The device of one of several processes: a GPU each, or the CPU for all."""
    device = torch.device(device)
    return torch.device("cuda", rank) if device.type == "cuda" else device


def under_torchrun() -> bool:
    """Whether torchrun, or a launcher like it, has started this process among others."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def gpus_needed(count: int) -> int:
    """How many GPUs this machine must have for ``count`` processes, as far as this one knows."""
    return _local_rank() + 1 if under_torchrun() else count


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))


@contextlib.contextmanager
def joined_by_torchrun(device: str, timeout: timedelta = PATIENCE) -> Iterator[None]:
    """Context in which this process can talk to all that torchrun has started, on any machine."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    store, *_ = next(rendezvous("env://", rank, count, timeout=max(timeout, _MEETING)))
    store = _of_this_attempt(store, rank, count, max(timeout, _MEETING))
    with joined(rank, count, here, store, device_of(_local_rank(), device), timeout):
        yield


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


@contextlib.contextmanager
def joined(
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
    _groups["patient"] = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        torch.distributed.barrier()  # nobody leaves before all have met
        yield
    finally:
        _groups.clear()
        torch.distributed.destroy_process_group()
