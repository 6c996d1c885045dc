from functools import partial

import pytest
import torch

from benchmarks import ops


@pytest.mark.usefixtures("native")
def test_measures_every_operator_with_both_implementations():
    measure = partial(ops.medians, torch.device("cpu"), 1)
    x = torch.randn(2, 4, 8, 8)
    rows = [ops.operator_row(measure, x, name, call) for name, call in ops.operators(x).items()]
    row = ops.modulated_row(measure, torch.device("cpu"), 2, 4, 4, 8, 2)
    report = dict(ops.machine(torch.device("cpu")), dtype="float32", operators=rows)
    text = ops.text(report | {"modulated_conv2d": [row]})
    assert len(text.splitlines()) == len(rows) + 3
    for result in rows:
        assert set(result["seconds"]) == {
            "copy",
            "ref forward",
            "native forward",
            "ref backward",
            "native backward",
        }
        assert result["forward_ratio"] > 0 and result["backward_ratio"] > 0
