import pytest
import torch

from torch_utils.devices import find_device


@pytest.mark.parametrize("count", [0, 2])
def test_find_device(count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    assert find_device("cpu") == torch.device("cpu")
    assert find_device() == torch.device("cuda" if count else "cpu")
    for name, index in (("cuda", 0), ("cuda:1", 1), ("cuda:2", 2)):
        if index < count:
            assert find_device(name) == torch.device(name)
        else:
            with pytest.raises(ValueError, match=f"--device={name} is not there"):
                find_device(name)


def test_each_process_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda", processes=2) == torch.device("cuda")
    assert find_device("cpu", processes=9) == torch.device("cpu")
    with pytest.raises(ValueError, match="--gpus=3: there are 2 GPUs here"):
        find_device("cuda", processes=3)


@pytest.mark.parametrize("name", ["", "meta", "mps", "hpu", "cuda:", "cuda:-1", "cpu:0", "cpu\n"])
def test_other_devices_are_refused(name):
    with pytest.raises(ValueError, match="must be cpu, cuda or cuda:N"):
        find_device(name)
