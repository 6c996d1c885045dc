import itertools
from datetime import timedelta

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from torch_utils import distributed
from torch_utils.spawn import run_processes
from training.run import consistency
from training.run.consistency import ConsistencyError, check_consistency, checksums

MINUTE = timedelta(minutes=1)


def come_apart():
    G, D = tiny.networks()
    nets = {"G": G, "D": D}
    check_consistency(nets)
    if distributed.get_rank() == 1:
        with torch.no_grad():
            D.b8.conv1.weight[0, 0, 0, 0] *= 1 + 1e-6
    try:
        check_consistency(nets)
    except ConsistencyError as error:
        return str(error)


@pytest.mark.slow
def test_networks_that_have_come_apart_are_named():
    message = run_processes(come_apart, 2, timeout=MINUTE)
    assert "D.b8.conv1.weight of process 1 is not that of process 0" in message


TENSORS = {
    "float32": torch.linspace(-3, 3, 6),
    "float64": torch.linspace(-3, 3, 6, dtype=torch.float64),
    "float16": torch.linspace(-3, 3, 6).half(),
    "bfloat16": torch.linspace(-3, 3, 6).bfloat16(),
    "int64": torch.arange(6),
    "uint8": torch.arange(6, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True, True, False, False]),
    "0-dim": torch.tensor(1.5),
    "transposed": torch.linspace(-3, 3, 6).view(2, 3).t(),
    "of another tensor": torch.linspace(-3, 3, 9)[3:],
}


def checksum(tensor):
    module = torch.nn.Module()
    module.register_buffer("tensor", tensor)
    return checksums({"x": module})["x.tensor"]


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_checksums_see_every_bit(tensor):
    before = checksum(tensor)
    assert checksum(tensor.clone()) == checksum(tensor.contiguous()) == before
    data = tensor.clone().contiguous().view(-1).view(torch.uint8)
    bits = [0] if tensor.dtype == torch.bool else range(8)
    for byte in range(len(data)):
        for bit in bits:
            data[byte] ^= 1 << bit
            assert checksum(data.view(tensor.dtype).view(tensor.shape)) != before, (byte, bit)
            data[byte] ^= 1 << bit


def test_checksums_see_places(monkeypatch):
    monkeypatch.setattr(consistency, "CHUNK", 4)
    values = torch.tensor([1.5, -1.5, 2.0, -2.0, 1.5, 0.0, -0.0, 3.0, 7.0])
    before = checksum(values)
    for i, j in itertools.combinations(range(len(values)), 2):
        swapped = values.clone()
        swapped[[i, j]] = values[[j, i]]
        same = torch.equal(swapped.view(torch.int32), values.view(torch.int32))
        assert (checksum(swapped) == before) == same, (i, j)


def test_checksums_of_a_large_tensor_take_little_memory():
    tensor = torch.zeros(5 * consistency.CHUNK + 3)
    with LargestResult() as largest:
        checksum(tensor)
    assert largest.bytes == 8 * consistency.CHUNK


class LargestResult(TorchDispatchMode):
    """Context that notes the most bytes that an operator has made, except for views."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made._base is None and not func.is_view:
            in_place = any(made is arg for arg in args)
            self.bytes = max(self.bytes, 0 if in_place else made.nbytes)
        return made
