import logging

import pytest
import torch

from tests import tiny
from tests.torch_utils.ops.native.test_build import compiler
from tests.train_cli import SMALL, invoke, ticks, without_curves
from torch_utils.ops import backend
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.native import library
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upsample2d

ON_CPU = [arg for arg in SMALL if not arg.startswith("--ops")]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has not looked for native operators yet, and an empty cache."""
    monkeypatch.setattr(backend, "_ready", {})
    monkeypatch.setattr(library, "_problems", {})
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(params=["broken", "none"])
def no_compiler(request, fresh, monkeypatch):
    if request.param == "broken":
        compiler(fresh, monkeypatch, "echo 'a.cpp:1: error: broken' >&2; exit 1")
        return "a.cpp:1: error: broken"
    monkeypatch.setenv("CXX", "/nowhere/g++")
    return "no working C++ compiler"


@pytest.mark.slow
@without_curves
def test_training_runs_without_native_operators_with_unchanged_results(no_compiler, fresh):
    data = tiny.write_data(fresh / "tiny.zip")
    runs = {}
    for ops in ("auto", "ref"):
        result = invoke(*ON_CPU, f"--data={data}", f"--outdir={fresh}/{ops}", f"--ops={ops}")
        assert result.exit_code == 0, result.output
        assert result.output.count("not available (") + result.output.count("not available:") == (
            1 if ops == "auto" else 0
        )
        assert (no_compiler in result.output) == (ops == "auto")
        [folder] = (fresh / ops).iterdir()
        runs[ops] = [tick["Loss/scores/real"] for tick in ticks(folder)]
    assert runs["auto"] == runs["ref"]


@pytest.mark.slow
def test_insisting_on_native_ends_in_one_line_before_any_work(no_compiler, fresh):
    data = tiny.write_data(fresh / "tiny.zip")
    result = invoke(*ON_CPU, f"--data={data}", f"--outdir={fresh}/runs", "--ops=native")
    assert result.exit_code == 1
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: The native operators for CPU are not available")
    assert no_compiler in last and last.endswith("Or choose --ops=auto or --ops=ref.")
    assert not (fresh / "runs").exists()


@pytest.mark.slow
def test_first_use_warns_once(no_compiler, caplog):
    backend.select("auto")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            bias_act(torch.zeros(2**18), act="relu")
    [record] = [r for r in caplog.records if r.name == backend.__name__]
    assert no_compiler in record.getMessage() and "plain PyTorch" in record.getMessage()
    with pytest.raises(backend.NativeUnavailableError, match="--ops=ref"):
        backend.select("native", "cpu")
    assert backend.selected() == "auto"


def test_other_devices_and_dtypes_are_left_to_pytorch(native):
    assert bias_act(torch.zeros(2, 3, device="meta"), act="relu").shape == (2, 3)
    assert bias_act(torch.ones(2, 3, dtype=torch.int64)).dtype == torch.int64


def test_auto_does_without_native_operators_where_they_do_not_pay(native, monkeypatch):
    def native_calls(mode):
        backend.select(mode)
        calls = []
        asked = backend.uses_native
        with monkeypatch.context() as patch:
            patch.setattr(
                backend,
                "uses_native",
                lambda *args, **kw: calls.append(asked(*args, **kw)) or calls[-1],
            )
            f = setup_filter([1, 3, 3, 1])
            small, large = torch.zeros(1, 1, 15, 16), torch.zeros(1, 2, 16, 16)
            huge = torch.zeros(2**18)
            for x in (small, small.bfloat16(), large):
                upsample2d(x, f)
            filter2d(small, f)
            downsample2d(large, f)
            bias_act(large, act="lrelu")
            bias_act(huge, act="lrelu")
            bias_act(huge, act="tanh")
        return calls

    assert native_calls("auto") == [False, True, True, False, False, False, True, False]
    assert native_calls("native") == [True] * 8


def test_bad_modes_are_refused():
    with pytest.raises(ValueError, match="auto, native, ref, not 'fast'"):
        backend.select("fast")
    with pytest.raises(ValueError, match="impl must be"):
        backend.uses_native(torch.zeros(1), "native")
