import contextlib
import multiprocessing
import os
import signal
import time
from datetime import timedelta

import pytest
import torch

from torch_utils import distributed
from torch_utils.distributed import (
    all_gather,
    broadcast,
    broadcast_from_rank0,
    device_of,
    gather,
    get_rank,
    gpus_needed,
    is_rank0,
    joined_by_torchrun,
    rank0_first,
    run_on_rank0,
    wait_for_rank0,
)
from torch_utils.spawn import WorkerError, run_processes

SECOND = timedelta(seconds=1)


def greet(word):
    gathered = gather(f"{word} {get_rank()}")
    shared = broadcast(f"from {get_rank()}")
    exchanged = gather(all_gather({"rank": get_rank()}))
    return gathered, shared, exchanged, torch.distributed.is_initialized()


def fail(rank):
    if get_rank() == rank:
        raise ValueError(f"process {rank} has a reason")
    gather(None)  # the others wait


def large():
    return bytes(1 << 20) if is_rank0() else None


def die():
    if get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    gather(None)


def in_order(path):
    def task():
        with open(path, "a") as file:
            file.write(str(get_rank()))
        return get_rank()

    return gather(rank0_first(task))


def test_one_process_is_this_one():
    assert run_processes(greet, 1, "hello") == (["hello 0"], "from 0", [[{"rank": 0}]], False)
    with pytest.raises(ValueError, match="process 0 has a reason"):
        run_processes(fail, 1, 0)


def test_two_processes_talk_in_the_order_of_their_ranks():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    ranks = [{"rank": 0}, {"rank": 1}]
    expected = ["hello 0", "hello 1"], "from 0", [ranks, ranks], True
    assert run_processes(greet, 2, "hello") == expected
    assert [signal.getsignal(number) for number in numbers] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []), "signals come as before"


@pytest.mark.slow
def test_an_error_of_one_ends_all_with_its_message():
    with pytest.raises(WorkerError, match="^process 1 has a reason$"):
        run_processes(fail, 2, 1)


@pytest.mark.slow
def test_a_result_larger_than_a_pipe():
    assert len(run_processes(large, 2)) == 1 << 20


@pytest.mark.slow
def test_a_process_that_is_killed():
    with pytest.raises(WorkerError, match="^process 1 was killed by signal 9 .often: out of mem"):
        run_processes(die, 2)


def time_out_elsewhere(kind):
    if get_rank() == 1:
        raise kind("Read timed out.")
    gather(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [(OSError, "^Read timed out.$"), (RuntimeError, "^a process has kept the others waiting")],
)
def test_other_things_time_out_too(kind, told):
    with pytest.raises(WorkerError, match=told):
        run_processes(time_out_elsewhere, 2, kind)


def test_gpus_that_processes_need(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert gpus_needed(8) == 8
    place = {"RANK": "12", "WORLD_SIZE": "16", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    monkeypatch.setattr(os, "environ", place | {"LOCAL_RANK": "4"})
    assert gpus_needed(16) == 5, "whatever other machines have"


def told_by_first(task):
    try:
        return all_gather(broadcast_from_rank0(task))
    except SystemExit as end:
        return end.code


def on_first():
    return all_gather(run_on_rank0(lambda: "a value") or "nothing")


def name_of_first():
    return multiprocessing.current_process().name


def refuse():
    raise ValueError("the first has a reason")


@pytest.mark.slow
def test_what_the_first_does_for_all():
    assert broadcast_from_rank0(name_of_first) == name_of_first()
    assert len(set(run_processes(told_by_first, 2, name_of_first))) == 1
    assert run_processes(on_first, 2) == ["a value", "nothing"]
    with pytest.raises(WorkerError, match="^the first has a reason$"):
        run_processes(told_by_first, 2, refuse)


def fail_and_be_aborted():
    if get_rank() == 1:
        raise ValueError("the reason")
    with contextlib.suppress(RuntimeError):
        gather(None)
    os.abort()  # as the watchdog of NCCL does


@pytest.mark.slow
def test_the_reason_goes_before_what_follows_from_it():
    with pytest.raises(WorkerError, match="^the reason$"):
        run_processes(fail_and_be_aborted, 2)


@pytest.mark.slow
def test_the_first_goes_before_the_others(tmp_path):
    assert run_processes(in_order, 2, str(tmp_path / "order")) == [0, 1]
    assert (tmp_path / "order").read_text() == "01"


# Patience


def long_tasks():
    """Of the first, while the others wait; then of the second."""

    def load(rank=0):
        time.sleep(1.5 if get_rank() == rank else 0)
        return "loaded"

    found = [rank0_first(load), broadcast(load())]
    load()
    wait_for_rank0()
    return [*found, rank0_first(lambda: load(1)), *all_gather(get_rank())]


def long_step():
    time.sleep(0 if is_rank0() else 30)
    gather(None)


@pytest.mark.slow
def test_long_tasks_of_one_do_not_count_as_hanging():
    found = run_processes(long_tasks, 2, timeout=SECOND)
    assert found == ["loaded", "loaded", "loaded", 0, 1]


@pytest.mark.slow
def test_a_step_that_takes_too_long_does(monkeypatch):
    monkeypatch.setattr("torch_utils.spawn._GRACE", 1)
    with pytest.raises(WorkerError, match="a process has kept the others waiting"):
        run_processes(long_step, 2, timeout=SECOND)


# Signals


def noting(number, caught):
    signal.signal(number, lambda *_: caught.append(number))


def ask_to_stop(number, handlers):
    """The first sends a signal to the parent; those in `handlers` note it, as training does."""
    caught = []
    if get_rank() in handlers:
        noting(number, caught)
    gather(None)
    if is_rank0():
        os.kill(os.getppid(), number)
    end = time.monotonic() + 60
    while not caught and time.monotonic() < end:
        time.sleep(0.01)
    return gather((caught, os.getpgid(0) == os.getpid()))


SIGNALS = ["SIGTERM", "SIGINT", "SIGUSR1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_passed_on_as_it_is(name):
    number = getattr(signal, name)
    assert run_processes(ask_to_stop, 2, number, (0, 1)) == [([number], True)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_a_task_that_knows_nothing_of_signals(name):
    with pytest.raises(WorkerError, match=f"^stopped by {name}$"):
        run_processes(ask_to_stop, 2, getattr(signal, name), ())


@pytest.mark.slow
def test_a_signal_that_only_one_of_them_notes_ends_all():
    with pytest.raises(WorkerError, match="^stopped by SIGTERM$"):
        run_processes(ask_to_stop, 2, signal.SIGTERM, (0,))


def ask_twice():
    noting(signal.SIGINT, caught := [])
    gather(None)
    while is_rank0():
        os.kill(os.getppid(), signal.SIGINT)
        while not caught:
            time.sleep(0.01)
    time.sleep(60)


@pytest.mark.slow
def test_a_second_ctrl_c_kills_them():
    with pytest.raises(KeyboardInterrupt):
        run_processes(ask_twice, 2)
    codes = []
    for worker in multiprocessing.active_children():
        worker.join(60)
        codes.append(worker.exitcode)
    assert codes == [-signal.SIGKILL] * 2


# Threads


@pytest.mark.parametrize(
    ("env", "threads"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, 4),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        ({}, 8),  # of the only one
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "8"}, 8),
    ],
    ids=["two here", "more than cores", "not said", "as the user says"],
)
def test_processes_of_a_machine_share_its_cores(env, threads, monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in (place | env).items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        with joined_by_torchrun("cpu"):
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_devices():
    assert device_of(3, "cpu") == torch.device("cpu")
    assert device_of(3, "cuda") == torch.device("cuda", 3)


def rank_alone():
    with distributed.alone():
        inside = get_rank(), distributed.get_world_size(), gather("mine")
    return all_gather((inside, get_rank(), distributed.get_world_size()))


@pytest.mark.slow
def test_one_of_them_can_work_as_if_alone():
    assert run_processes(rank_alone, 2) == [((0, 1, ["mine"]), rank, 2) for rank in (0, 1)]
