import pytest
import torch
from click.testing import CliRunner

from tests.torch_utils.ops.native.test_build import compiler, tiny  # noqa: F401
from torch_utils.ops.__main__ import main
from torch_utils.ops.native import build, doctor, toolchain


def test_says_what_is_there(native):
    text = doctor.report()
    assert f"PyTorch {torch.__version__}" in text
    assert str(build.cache_folder()) in text and "TORCH_EXTENSIONS_DIR" in text
    assert "cpu: native operators are built: " in text


@pytest.mark.skipif(torch.version.cuda is not None, reason="PyTorch with CUDA")
def test_says_that_this_pytorch_has_no_cuda():
    text = doctor.report().partition("cuda: ")[2]
    assert "plain PyTorch is used" in text
    assert "To do: this PyTorch is built without CUDA" in text


def test_says_what_is_missing_and_what_to_do(tiny, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CXX", "/nowhere/g++")
    text = doctor.report()
    assert "C++ compiler    missing" in text
    assert "To do: there is no working C++ compiler (/nowhere/g++): install one" in text


@pytest.mark.slow
def test_build_and_doctor_of_a_failing_compiler(tiny, monkeypatch):  # noqa: F811
    compiler(tiny, monkeypatch, "echo 'x.cpp:1: error: no' >&2; exit 1")
    assert "will be built on first use; now: python -m torch_utils.ops build" in doctor.report()
    result = CliRunner().invoke(main, ["build", "--device=cpu"])
    assert result.exit_code == 1 and "x.cpp:1: error: no" in result.output
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0 and "the last build failed" in result.output
    assert "x.cpp:1: error: no" in result.output


def test_build_prints_where(native):
    result = CliRunner().invoke(main, ["build", "--device=cpu"])
    assert result.exit_code == 0
    assert str(build.folder_of(toolchain.find("cpu"))) in result.output
