import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import train_step
from tests.train_cli import logging_as_before


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_multiply_adds_of_a_convolution(groups, transposed):
    x = torch.rand(3, 4, 5, 5, requires_grad=True)
    shape = (4, 6 // groups) if transposed else (6, 4 // groups)
    weight = torch.rand(*shape, 3, 3, requires_grad=True)
    conv = torch.conv_transpose2d if transposed else torch.conv2d
    with train_step.MultiplyAdds() as forward:
        out = conv(x, weight, groups=groups)
    places = 5 * 5 if transposed else 3 * 3
    assert forward.total == 3 * places * 6 * 4 * 9 // groups
    with train_step.MultiplyAdds() as backward:
        out.sum().backward()
    assert backward.total == 2 * forward.total, "by the input and by the weight"


def test_multiply_adds_of_a_matrix_product():
    with train_step.MultiplyAdds() as counter:
        torch.rand(2, 3) @ torch.rand(3, 5)
    assert counter.total == 2 * 3 * 5


def test_both_stages_are_measured(tmp_path):
    path = tmp_path / "out" / "result.json"
    with logging_as_before():
        result = CliRunner().invoke(
            train_step.main,
            [
                "--cfg=digits",
                "--resolution=8",
                "--channels=1",
                "--classes=3",
                "--device=cpu",
                "--batch=8",
                "--gamma=1",
                "--g-scale=0.00390625",
                "--warmup=0",
                "--repeats=1",
                f"--save={path}",
            ],
        )
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["stages"]["adversarial"]["intervals"]["Dreg"] == 16
    assert report["predicted_ratio"] > 1, "Langevin steps cost"
    assert "by multiply-adds" in result.output
