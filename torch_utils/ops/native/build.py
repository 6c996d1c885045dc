"""Builds the native operators, once for all processes, and never hangs.

Libraries are kept in a folder of a cache whose name is a hash of everything that they depend on.
A build takes place in a process of its own, in a fresh folder, under a lock of the operating system
that ends with its owner, whatever ends that: there are no stale locks. A build that has failed is
not tried again by itself.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import psutil

from torch_utils.ops.native import toolchain as toolchains
from torch_utils.ops.native.toolchain import Toolchain

BUILD_SECONDS = 900  # a build that takes longer is stuck
WAIT_SECONDS = 1000  # for a build of another process, which ends itself before
RETRY = "python -m torch_utils.ops build"

logger = logging.getLogger(__name__)
_ROOT = Path(__file__).parents[3]  # where torch_utils is
_FAILURE = "failed.json"
_TITLES = {"cpu": "CPU", "cuda": "CUDA"}


class BuildError(Exception):
    """The operators cannot be built; the message is a paragraph for the user."""


def cache_folder() -> Path:
    """Where libraries are kept: below TORCH_EXTENSIONS_DIR, else in the user's cache."""
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder) / "coopinit"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "coopinit" / "ops"


def folder_of(toolchain: Toolchain) -> Path:
    """The folder of the library that a toolchain would build, whether it is there or not."""
    return cache_folder() / f"{toolchain.device_type}-{toolchain.key()}"


def library_in(folder: Path) -> Path:
    """The library of a folder, whether it is there or not."""
    return folder / "coopinit_ops.so"


def library(device_type: str, retry: bool = False, wait_seconds: float = WAIT_SECONDS) -> Path:
    """Path of the library for 'cpu' or 'cuda', built now if it is not in the cache.

    Args:
        device_type: 'cpu' or 'cuda'.
        retry: Build also where a build has failed before.
        wait_seconds: How long another process may take to build the same.

    Raises:
        BuildError: It cannot be had; the message says why and how to proceed.
    """
    title = f"The native operators for {_TITLES[device_type]} are not available"
    toolchain = toolchains.find(device_type)
    if toolchain.problems:
        raise BuildError(f"{title}: {'; '.join(toolchain.problems)}.")
    folder = "the cache"
    try:
        folder = folder_of(toolchain)
        path = library_in(folder)
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder, wait_seconds):
            if path.exists():  # built by another process meanwhile
                return path
            if not retry and (message := remembered_failure(folder)):
                raise BuildError(message)
            failure = folder / _FAILURE
            try:
                logger.warning(
                    "Building the native operators for %s, once; this takes about a minute.",
                    _TITLES[device_type],
                )
                _compile(toolchain, folder)
            except BuildError as error:
                message = f"{title}: {error} To try again: {RETRY}."
                failure.write_text(json.dumps({"message": message, "time": time.time()}))
                raise BuildError(message) from None
            failure.unlink(missing_ok=True)
    # RuntimeError: there is no home folder; NotImplementedError: a file system without locks.
    except (OSError, RuntimeError) as error:
        raise BuildError(
            f"{title}: {folder} cannot be used ({first_line(error)}). Name a folder that can be "
            "written, on a local disk, in TORCH_EXTENSIONS_DIR."
        ) from None
    return path


def remembered_failure(folder: Path) -> str | None:
    """What the last build in a folder has failed with; None if it has not."""
    try:
        failure = json.loads((folder / _FAILURE).read_text())
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(failure["time"]))
        return f"{failure['message']} (So ended the build of {when}.)"
    except (OSError, ValueError, KeyError, TypeError):  # none, or one that was cut off
        return None


@contextlib.contextmanager
def _turn(folder: Path, wait_seconds: float) -> Iterator[None]:
    """Context that one process at a time is in. The lock is the kernel's, the file only its name.

    Raises:
        BuildError: Another process holds it for too long.
    """
    owner = folder / "owner.json"
    lock = filelock.FileLock(folder / "lock")
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            logger.warning(
                "Waiting for the native operators, which another process (%s) builds; for %g "
                "seconds at most.",
                _describe(owner),
                wait_seconds,
            )
            lock.acquire(timeout=wait_seconds)
    except filelock.Timeout:
        raise BuildError(
            f"Another process ({_describe(owner)}) has been building the native operators for "
            f"more than {wait_seconds:g} seconds. If it hangs, end it and start again."
        ) from None
    try:
        owner.write_text(json.dumps(_this_process()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}


def _describe(owner: Path) -> str:
    try:
        data = json.loads(owner.read_text())
        return f"process {data['pid']} on {data['host']}"
    except (OSError, ValueError, KeyError):
        return "unknown"


def _compile(toolchain: Toolchain, folder: Path) -> None:
    """Build into `folder`; the library appears there complete or not at all."""
    for left_over in folder.glob("build-*"):  # of a process that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    log = folder / "build.log"
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as work:
        request = {
            "name": library_in(folder).stem,
            "sources": [str(path) for path in toolchain.sources],
            "extra_cflags": list(toolchain.cxx_flags),
            "extra_cuda_cflags": list(toolchains.CUDA_FLAGS),
            "build_directory": work,
        }
        output, status = _run(request, toolchain)
        log.write_text(output)
        if status is None:
            raise BuildError(f"the build took more than {BUILD_SECONDS} seconds; see {log}.")
        if status != 0:
            raise BuildError(f"the build failed ({first_error(output)}). All output: {log}.")
        os.replace(Path(work) / library_in(folder).name, library_in(folder))


def _run(request: dict, toolchain: Toolchain) -> tuple[str, int | None]:
    """Run compile.py; returns its output, and its status or None where it took too long."""
    environment = os.environ | {
        "PATH": toolchains.search_path(),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        "LC_ALL": "C",  # messages of compilers are searched for errors
        "TORCH_CUDA_ARCH_LIST": toolchain.architectures,
    }
    command = [sys.executable, "-m", "torch_utils.ops.native.compile", json.dumps(request)]
    process = subprocess.Popen(
        command,
        cwd=request["build_directory"],  # python -m looks for modules there
        env=environment,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=BUILD_SECONDS)
        return output, process.returncode
    except subprocess.TimeoutExpired:
        return "", None
    finally:
        if process.poll() is None:  # also after Ctrl-C
            _end(process)


def _end(process: subprocess.Popen) -> None:
    """Kill a build. Ninja gives compilers process groups of their own: go by descent."""
    running = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.communicate()


def first_error(output: str) -> str:
    """The first line of a build's output that names an error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)]
    # Ours come first: PyTorch wraps the compiler's words in an exception of its own.
    own = [line for line in errors if not line.startswith(("RuntimeError", "subprocess."))]
    return (own or errors or lines[-1:] or ["no output"])[0][:300]


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
