"""Builds that succeed, fail, hang and meet each other; of a tiny library, with any C++ compiler."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from torch_utils.ops.native import build, toolchain

ROOT = Path(__file__).parents[4]
TINY = 'extern "C" int answer() { return 42; }\n'
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty cache, and a tiny source instead of the operators; returns the folder of both."""
    source = tmp_path / "src"
    source.mkdir()
    (source / "cpu_tiny.cpp").write_text(TINY)
    monkeypatch.setattr(toolchain, "SOURCES", source)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path


def compiler(folder, monkeypatch, script):
    """Make CXX a program that knows its version and otherwise runs a line of shell."""
    path = folder / "fake-g++"
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version|*-dumpversion*|*-v) echo "fake-g++ (GCC) 12.2.0"; exit 0;; esac\n'
        f"echo called >> {folder}/calls\n{script}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))


def calls(folder):
    path = folder / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def process(folder, code):
    """Start Python with the tiny source; it runs `code` after build and toolchain are imported."""
    prelude = (
        "import pathlib, sys, time\n"
        "from torch_utils.ops.native import build, toolchain\n"
        f"toolchain.SOURCES = pathlib.Path({str(folder / 'src')!r})\n"
        "folder = build.folder_of(toolchain.find('cpu'))\n"
        "folder.mkdir(parents=True, exist_ok=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


HOLD = "with build._turn(folder, 60):\n    print('mine', flush=True)\n    time.sleep(600)\n"


@pytest.mark.slow
@needs_compiler
def test_builds_once_for_processes_that_start_together(tiny, monkeypatch):
    compiler(tiny, monkeypatch, 'exec c++ "$@"')
    code = "print(build.library('cpu'))\n"
    processes = [process(tiny, code) for _ in range(3)]
    paths = {p.communicate(timeout=120)[0].strip() for p in processes}
    assert len(paths) == 1 and os.path.exists(paths.pop())
    assert calls(tiny) == 2, "one compiles and links"


@pytest.mark.slow
@needs_compiler
def test_a_lock_left_by_a_killed_process_is_taken_over(tiny):
    owner = process(tiny, HOLD)
    assert owner.stdout.readline() == "mine\n"
    folder = build.folder_of(toolchain.find("cpu"))
    (folder / "build-abandoned").mkdir()
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert json.loads((folder / "owner.json").read_text())["pid"] == owner.pid
    start = time.monotonic()
    path = build.library("cpu", wait_seconds=30)
    assert path.exists() and time.monotonic() - start < 30
    assert sorted(p.name for p in folder.iterdir()) == ["build.log", path.name, "lock"]


def test_waiting_for_a_living_process_ends(tiny, monkeypatch):
    compiler(tiny, monkeypatch, "exit 1")
    owner = process(tiny, HOLD)
    try:
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(build.BuildError, match=rf"process {owner.pid} on .* end it"):
            build.library("cpu", wait_seconds=0.3)
    finally:
        owner.kill()
        owner.communicate()
    assert calls(tiny) == 0


@pytest.mark.slow
def test_a_failing_compiler_is_quoted_and_not_asked_again(tiny, monkeypatch):
    compiler(tiny, monkeypatch, "echo 'tiny.cpp:1:1: error: cannot be' >&2; exit 1")
    with pytest.raises(build.BuildError) as first:
        build.library("cpu")
    message = str(first.value)
    assert "native operators for CPU are not available" in message
    assert "tiny.cpp:1:1: error: cannot be" in message
    assert message.endswith("To try again: python -m torch_utils.ops build.")
    assert "\n" not in message
    log = message.partition("All output: ")[2].partition(". To try")[0]
    assert "cannot be" in Path(log).read_text()
    assert calls(tiny) == 1
    with pytest.raises(build.BuildError, match=r"cannot be.*So ended the build of 20"):
        build.library("cpu")
    assert calls(tiny) == 1
    with pytest.raises(build.BuildError):
        build.library("cpu", retry=True)
    assert calls(tiny) == 2


@pytest.mark.slow
def test_a_hanging_compiler_is_stopped(tiny, monkeypatch):
    compiler(tiny, monkeypatch, f"echo $$ > {tiny}/pid; exec sleep 600")
    monkeypatch.setattr(build, "BUILD_SECONDS", 6)
    with pytest.raises(build.BuildError, match="took more than 6 seconds"):
        build.library("cpu")
    pid = int((tiny / "pid").read_text())
    # Nobody may be there to bury it.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_without_a_compiler_or_ninja_the_remedy_is_named(tiny, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(toolchain, "search_path", lambda: str(tiny))
    with pytest.raises(build.BuildError) as error:
        build.library("cpu")
    assert "no working C++ compiler (/nowhere/g++): install one" in str(error.value)
    assert "pip install ninja" in str(error.value)


def test_a_cache_that_cannot_be_written_is_named(tiny, monkeypatch):
    compiler(tiny, monkeypatch, "exit 1")
    (tiny / "cache").write_text("a file")
    with pytest.raises(build.BuildError, match="TORCH_EXTENSIONS_DIR"):
        build.library("cpu")


def test_the_key_changes_with_all_that_matters(tiny, monkeypatch):
    compiler(tiny, monkeypatch, "exit 1")
    keys = [toolchain.find("cpu").key()]
    (tiny / "src" / "one.h").write_text("// a header")
    keys.append(toolchain.find("cpu").key())
    (tiny / "src" / "cpu_tiny.cpp").write_text(TINY + "// changed")
    keys.append(toolchain.find("cpu").key())
    monkeypatch.setattr("torch.__version__", "9.9.9")
    keys.append(toolchain.find("cpu").key())
    monkeypatch.setenv("CXX", "c++")
    keys.append(toolchain.find("cpu").key())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("a\nb.cpp:3: error: x\nRuntimeError: Error building\n", "b.cpp:3: error: x"),
        ("RuntimeError: Error building\n", "RuntimeError: Error building"),
        ("hm\n\nlast\n", "last"),
        ("", "no output"),
    ],
)
def test_first_error(output, line):
    assert build.first_error(output) == line


@pytest.mark.parametrize("content", ["", '{"message": "cut', "[]", '{"time": 0}'])
def test_a_failure_that_was_cut_off_is_none(tmp_path, content):
    (tmp_path / "failed.json").write_text(content)
    assert build.remembered_failure(tmp_path) is None


@pytest.mark.parametrize("error", [PermissionError("not yours"), RuntimeError("no home")])
def test_a_cache_that_cannot_even_be_looked_at_is_no_crash(monkeypatch, error):
    def fail(toolchain):
        raise error

    monkeypatch.setattr(build, "folder_of", fail)
    with pytest.raises(build.BuildError, match="cannot be used .*TORCH_EXTENSIONS_DIR"):
        build.library("cpu")
    from torch_utils.ops.native import doctor

    assert "the cache cannot be used" in doctor.report()


@pytest.mark.parametrize("line", ["nvcc fatal   : Unsupported gpu architecture 'compute_200'"])
def test_fatal_lines_are_errors(line):
    output = f"FAILED\n{line}\nRuntimeError: Error building extension\n"
    assert build.first_error(output) == line
