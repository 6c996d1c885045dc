"""Folders of runs."""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dnnlib.full_disk import LogFile

try:
    import fcntl
except ImportError:  # Windows: two processes in one run folder are not noticed there
    fcntl = None

JOB = ".job"
PATIENCE = 60  # seconds: one that was asked to stop saves, those it has spawned outlive it a little

logger = logging.getLogger(__name__)


def create_run_dir(outdir: str | os.PathLike, description: str, job: str = "") -> Path:
    """Make and return `outdir/NNNNN-description`, NNNNN one above the highest there.

    Args:
        outdir: Folder of all runs.
        description: End of the name.
        job: Name of the attempts of a process manager that the run is of (`attempts.job_name`).

    Raises:
        OSError: The folder cannot be made or written.
    """
    outdir = Path(outdir)
    if outdir.is_file():  # mkdir() would say that it exists
        raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(outdir))
    outdir.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(m[0]) for name in os.listdir(outdir) if (m := re.match(r"\d+", name))]
        run_dir = outdir / f"{max(numbers, default=-1) + 1:05d}-{description}"
        try:
            run_dir.mkdir()
        except FileExistsError:  # another run was faster
            continue
        if job:
            (run_dir / JOB).write_text(job)
        return run_dir


def job_of(run_dir: str | os.PathLike) -> str:
    """The `job` that `create_run_dir` was given."""
    path = Path(run_dir) / JOB
    return path.read_text() if path.exists() else ""


def is_unused(run_dir: str | os.PathLike) -> bool:
    """Whether nothing was made of a run except its folder, its settings and its log."""
    made = ("*.png", "*.pkl", "checkpoint-*.pt")
    return not any(path for pattern in made for path in Path(run_dir).glob(pattern))


@contextlib.contextmanager
def lock_run(run_dir: str | os.PathLike) -> Iterator[None]:
    """Context that no second process enters for the same run folder.

    One that is ending is waited for. The lock goes with the process, however that ends; workers do
    not inherit it. Where the file system has no locks, a warning says so.

    Raises:
        BlockingIOError: Another process stays in it.
        OSError: The folder cannot be written into.
    """
    end = time.monotonic() + PATIENCE
    with open(Path(run_dir) / ".lock", "ab") as file:
        waiting = False
        while not _lock(file, run_dir):
            if time.monotonic() >= end:
                raise BlockingIOError(
                    f"Another process is training in '{run_dir}'; --restart starts a new run"
                )
            if not waiting:
                logger.info("Waiting for another process that is training in '%s'.", run_dir)
            waiting = True
            time.sleep(0.2)
        yield


def _lock(file: IO[bytes], run_dir: str | os.PathLike) -> bool:
    """Take the lock; returns whether no other process has it."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning(
            "Warning: '%s' cannot be locked (%s): give this command only once at a time.",
            run_dir,
            error.strerror,
        )
    return True


@contextlib.contextmanager
def log_to(path: str | os.PathLike) -> Iterator[None]:
    """Context in which everything that is logged, and the error that ends it, goes to a file."""
    handler = LogFile(path, encoding="utf-8")
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk is full
            assert handler.stream is not None, "it is opened at once"
            handler.stream.write(f"{type(error).__name__}: {error}\n")
            handler.flush()
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
