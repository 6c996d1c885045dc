import os
import signal

import pytest
import torch

from torch_utils.distributed import Processes, WorkerError, device_of, run_processes


def greet(processes, word):
    gathered = processes.gather(f"{word} {processes.rank}")
    shared = processes.share(f"from {processes.rank}")
    return gathered, shared, torch.distributed.is_initialized()


def fail(processes, rank):
    if processes.rank == rank:
        raise ValueError(f"process {rank} has a reason")
    processes.gather(None)  # the others wait


def large(processes):
    return bytes(1 << 20) if processes.first else None


def die(processes):
    if processes.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.gather(None)


def in_order(processes, path):
    def task():
        with open(path, "a") as file:
            file.write(str(processes.rank))
        return processes.rank

    return processes.gather(processes.first_alone(task))


def test_one_process_is_this_one():
    assert run_processes(greet, 1, "hello") == (["hello 0"], "from 0", False)
    with pytest.raises(ValueError, match="process 0 has a reason"):
        run_processes(fail, 1, 0)


def test_two_processes_talk_in_the_order_of_their_ranks():
    assert run_processes(greet, 2, "hello") == (["hello 0", "hello 1"], "from 0", True)


def test_an_error_of_one_ends_all_with_its_message():
    with pytest.raises(WorkerError, match="^process 1 has a reason$"):
        run_processes(fail, 2, 1)


def test_a_result_larger_than_a_pipe():
    assert len(run_processes(large, 2)) == 1 << 20


def test_a_process_that_is_killed():
    with pytest.raises(WorkerError, match="^process 1 was killed by signal 9 .often: out of mem"):
        run_processes(die, 2)


def test_the_first_goes_before_the_others(tmp_path):
    assert run_processes(in_order, 2, str(tmp_path / "order")) == [0, 1]
    assert (tmp_path / "order").read_text() == "01"


def test_devices():
    assert device_of(3, "cpu") == torch.device("cpu")
    assert device_of(3, "cuda") == torch.device("cuda", 3)
    assert Processes().first and not Processes(1, 2).first
