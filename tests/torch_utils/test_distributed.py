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


def test_one_process_is_this_one():
    assert run_processes(greet, 1, "hello") == (["hello 0"], "from 0", False)
    with pytest.raises(ValueError, match="process 0 has a reason"):
        run_processes(fail, 1, 0)


def test_two_processes_talk_in_the_order_of_their_ranks():
    assert run_processes(greet, 2, "hello") == (["hello 0", "hello 1"], "from 0", True)


def test_an_error_of_one_ends_all_with_its_message():
    with pytest.raises(WorkerError, match="^process 1 has a reason$"):
        run_processes(fail, 2, 1)


def test_devices():
    assert device_of(3, "cpu") == torch.device("cpu")
    assert device_of(3, "cuda") == torch.device("cuda", 3)
    assert Processes().first and not Processes(1, 2).first
