"""Collective operations of the processes of one task, on one machine or on many.

All of them call each of these together; in a process that is alone they do what they should, too.
"""

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

RANK0_TIMEOUT = timedelta(hours=24)  # rank 0 may download or measure while the others wait
_RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # for all to start; longer where `timeout` is
# Of process managers, of Ctrl-C, and Slurm's warning before the time is up (--signal=USR1@120).
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
# Two process groups of all ranks: "steps" raises after the timeout, "rank0" after RANK0_TIMEOUT.
# Empty in a process that is alone.
_groups: dict[str, Any] = {}

T = TypeVar("T")


def get_rank() -> int:
    """The rank of this process; 0 in one that is alone."""
    return torch.distributed.get_rank() if _groups else 0


def get_world_size() -> int:
    """The number of processes, on all machines together."""
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
    """The values of all processes in the order of their ranks, on rank 0; None on the others.

    Args:
        value: That of this process; it is pickled.
    """
    if not _groups:
        return [value]
    values: list[Any] | None = [None] * get_world_size() if is_rank0() else None
    torch.distributed.gather_object(value, values, group=_groups["steps"])
    return values


def all_gather(value: T) -> list[T]:
    """As `gather`, but all processes get the values."""
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
    torch.distributed.broadcast_object_list(values, group=_groups["rank0"])
    return values[0]


def run_on_rank0(task: Callable[[], T]) -> T | None:
    """Call task() on rank 0 while the others wait for it, hours if need be.

    Returns:
        What it returned on rank 0; None on the others.

    Raises:
        SystemExit: It has failed, on the other ranks; rank 0 raises the error itself.
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
    return cast(T, broadcast(run_on_rank0(task)))  # that of rank 0 is no None


def rank0_first(task: Callable[[], T]) -> T:
    """Call task() on rank 0, which may download for all, and then on the others.

    Rank 0 may take hours, and so may the others after it.

    Returns:
        What it returned in this process.

    Raises:
        SystemExit: As `run_on_rank0`.
    """
    made = run_on_rank0(lambda: [task()])
    [value] = [task()] if made is None else made
    wait_for_rank0()
    return value


def any_rank(*flags: bool) -> list[bool]:
    """For each flag whether it is set in any process."""
    if not _groups:
        return list(flags)
    seen = torch.tensor(flags, dtype=torch.int32)
    torch.distributed.all_reduce(seen, group=_groups["steps"])
    return [count > 0 for count in seen.tolist()]


def wait_for_rank0() -> None:
    """Barrier that rank 0 may reach hours after the others."""
    if _groups:
        torch.distributed.barrier(group=_groups["rank0"])


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor of any shape by its mean over all processes, in place; returns it."""
    if _groups:
        all_reduce_sum(tensor)
        tensor /= get_world_size()
    return tensor


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor of any shape by its sum over all processes, in place; returns it."""
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
    """How many GPUs this machine must have for `count` processes, as far as this one knows."""
    return _local_rank() + 1 if under_torchrun() else count


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))


@contextlib.contextmanager
def joined_by_torchrun(device: str, timeout: timedelta = RANK0_TIMEOUT) -> Iterator[None]:
    """Context of the process group of all that torchrun has started, on any machine.

    Args:
        device: "cuda" for a GPU each, "cpu" for none.
        timeout: How long a process may keep the others waiting, unless they wait for rank 0.

    Raises:
        TimeoutError, torch.distributed.DistError: Not all of them have started in time.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    to_start = max(timeout, _RENDEZVOUS_TIMEOUT)
    store, *_ = next(rendezvous("env://", rank, world_size, timeout=to_start))
    store = _store_of_attempt(store, rank, world_size, to_start)
    own_device = device_of(_local_rank(), device)
    with joined(rank, world_size, local_world_size, store, own_device, timeout):
        yield


def _store_of_attempt(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of a store that only the processes of one attempt see.

    torchrun starts processes again with the store of those that died, whose addresses it holds.
    Each writes a name of its own; all have met when each has seen the same names.
    """
    store.set(f"name of {rank}", secrets.token_hex(8))
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        names = store.multi_get([f"name of {other}" for other in range(world_size)])
        attempt = PrefixStore(b" ".join(names).decode(), store)
        attempt.set(f"seen by {rank}", "")
        if attempt.check([f"seen by {other}" for other in range(world_size)]):
            return attempt
        time.sleep(0.05)  # some names are of the dead
    raise TimeoutError(f"not all of the {world_size} processes have started: timed out")


@contextlib.contextmanager
def joined(
    rank: int,
    world_size: int,
    local_world_size: int,
    store: Store,
    device: torch.device,
    timeout: timedelta,
) -> Iterator[None]:
    """Context of the process group of this process.

    Args:
        rank: Of this process.
        world_size: Number of processes.
        local_world_size: Number of those on this machine, which share its cores.
        store: Where they find each other.
        device: That of this process; tensors on GPUs go through NCCL, all else through gloo.
        timeout: How long a process may keep the others waiting, unless they wait for rank 0.
    """
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    if "OMP_NUM_THREADS" not in os.environ:  # which says it for each process, as torchrun does
        torch.set_num_threads(max(1, torch.get_num_threads() // local_world_size))
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=max(timeout, _RENDEZVOUS_TIMEOUT),
    )
    _groups["steps"] = torch.distributed.new_group(backend=backend, timeout=timeout)
    _groups["rank0"] = torch.distributed.new_group(backend="gloo", timeout=RANK0_TIMEOUT)
    try:
        torch.distributed.barrier()  # nobody leaves before all have met
        yield
    finally:
        _groups.clear()
        torch.distributed.destroy_process_group()
