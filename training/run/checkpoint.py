"""Checkpoints on disk: written beside training, checked, and read again.

A state is a file of `torch.save` that `torch.load(..., weights_only=True)` reads. Its name holds
which save of the run it is, the images seen, and the start of its SHA-256, so that a damaged file
is known for what it is.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import threading
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from dnnlib.errors import UserError
from dnnlib.hashing import file_sha256
from dnnlib.util import first_line

FORMAT = 1
KEPT = 2
ATTEMPTS = 3  # failed saves in a row that end a run
_NAME = re.compile(r"checkpoint-(\d{6,})-(\d{9,})-([0-9a-f]{16})\.pt")

logger = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message says what to do."""


class CheckpointFile(NamedTuple):
    """A checkpoint by its name; sorts by age."""

    number: int  # of the saves of the run
    nimg: int  # images seen; a run that has diverged may have gone back
    path: Path


def find_checkpoints(run_dir):
    """The checkpoints of a run folder as `CheckpointFile`, the newest first; unread."""
    found = []
    for path in Path(run_dir).glob("checkpoint-*.pt"):
        if name := _NAME.fullmatch(path.name):
            found.append(CheckpointFile(int(name[1]), int(name[2]), path))
    return sorted(found, reverse=True)


def read_newest_checkpoint(run_dir):
    """The newest state of a run folder that is whole; each that is not is named in a warning.

    Returns:
        (path, content).

    Raises:
        CheckpointError: There is none.
    """
    for state in find_checkpoints(run_dir):
        try:
            return state.path, read_checkpoint(state.path)
        except CheckpointError as error:
            logger.warning("Warning: %s; looking for the state before it.", error)
    raise CheckpointError(
        f"'{run_dir}' holds no checkpoint that can be used; start a new run: with --restart, "
        "without --resume"
    )


def read_checkpoint(path):
    """The content of a checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: The file is truncated, damaged, or of another version.
    """
    path = Path(path)
    try:
        if not is_whole(path):
            raise CheckpointError(f"'{path.name}' is truncated or damaged (its checksum is wrong)")
        _check_sizes(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files can make a reader raise anything
        raise CheckpointError(f"'{path.name}' cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"'{path.name}' is no checkpoint of this version")
    return content


def is_whole(path):
    """Whether a state has the checksum that its name tells.

    Raises:
        OSError: It cannot be read.
    """
    return _digest(path) == _NAME.fullmatch(Path(path).name)[3]


def _check_sizes(path):
    """torch.save() packs nothing; what unpacks to more than the file holds was made by others."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise CheckpointError(f"'{path.name}' unpacks to more than it holds; it is not used")


def write_checkpoint(run_dir, number, nimg, content):
    """Write a checkpoint to disk, read it back, and give it its name.

    Args:
        run_dir: The run folder.
        number: Which save of the run it is.
        nimg: Images seen.
        content: What `CheckpointWriter.save` takes, with its format.

    Returns:
        Its path. An error leaves nothing behind.

    Raises:
        OSError: It cannot be written, or reads back as something else.
    """
    part = Path(run_dir) / f".checkpoint-{secrets.token_hex(8)}.part"
    try:
        with open(part, "xb") as file:
            writer = _HashingWriter(file)
            writer.save(content)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # read back from the disk, not from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _digest(part) != writer.digest():
            raise OSError(errno.EIO, "it reads back as something else")
        path = part.with_name(f"checkpoint-{number:06d}-{nimg:09d}-{writer.digest()}.pt")
        os.replace(part, path)
        _sync(path.parent)  # a rename is on disk when its folder is
        return path
    finally:
        part.unlink(missing_ok=True)


class _HashingWriter:
    """Binary file for torch.save() that computes the checksum of what passes."""

    def __init__(self, file):
        self._file = file
        self._hash = hashlib.sha256()
        self._error = None

    def save(self, content):
        try:
            torch.save(content, self)
        except Exception:
            # torch wraps what write() raises, or replaces it.
            raise self._error or OSError(errno.EIO, "torch.save() failed") from None

    def write(self, data):
        try:
            written = self._file.write(data)
        except OSError as error:
            self._error = self._error or error
            raise
        self._hash.update(data)
        return written

    def flush(self):
        self._file.flush()

    def digest(self):
        return self._hash.hexdigest()[:16]


def _digest(path):
    return file_sha256(path)[:16]


def _sync(path):
    """Bring a file or folder to disk; Windows does so by itself."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_to_cpu(tree):
    """Nested dicts, lists and tuples with all tensors copied to the CPU."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: copy_to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copy_to_cpu(value) for value in tree)
    return tree


class CheckpointWriter:
    """Writes the states of one run in a thread; training waits only while they are copied.

    The `KEPT` newest that this class has seen whole stay, all others are removed once a newer one
    has been read back. What cannot be written is warned of and tried again at the next save.

    Args:
        run_dir: The run folder; unfinished files that a killed process left are removed.
        continued: Path of the state that the run goes on from, or None.
    """

    def __init__(self, run_dir, continued=None):
        self._run_dir = Path(run_dir)
        self._whole = [] if continued is None else [Path(continued)]
        self._number = max((state.number for state in find_checkpoints(run_dir)), default=0)
        self._thread = None
        self._error = None
        self._failed = 0
        self._reason = None
        for part in self._run_dir.glob(".*.part"):
            part.unlink(missing_ok=True)

    @property
    def busy(self):
        """Whether a state is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, nimg, content):
        """Start to write a state; what it holds may change as soon as this returns.

        Args:
            nimg: Images seen.
            content: Nested dicts, lists and tuples of tensors and plain values.

        Raises:
            CheckpointError: `ATTEMPTS` saves in a row have failed.
        """
        self.wait()
        content = copy_to_cpu({"format": FORMAT, **content})
        self._number += 1
        self._thread = threading.Thread(target=self._write, args=(nimg, content))
        self._thread.start()

    def poll(self):
        """Report how the latest save ended, if it has; raises like `save`."""
        if not self.busy:
            self.wait()

    def wait(self):
        """Wait for the latest save; raises like `save`."""
        reason = self._join()
        if reason is None:
            return
        if self._failed >= ATTEMPTS:
            raise self._stop(f"{self._failed} saves of the checkpoint in a row have failed")
        logger.warning(
            "Warning: the checkpoint could not be saved (%s); trying again at the next save.",
            reason,
        )

    def finish(self):
        """Wait for the last save of a run; raises CheckpointError where it failed."""
        if self._join() is not None:
            raise self._stop("the last checkpoint could not be saved")

    def _join(self):
        """Wait for the thread; returns why its save failed, or None."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        self._failed = 0 if error is None else self._failed + 1
        self._reason = None if error is None else error.strerror or first_line(error)
        return self._reason

    def _stop(self, what):
        return CheckpointError(
            f"{what} ({self._reason}); make room at '{self._run_dir}' and give the same command "
            f"again: it resumes from {self._newest()}"
        )

    def _newest(self):
        return f"'{self._whole[-1].name}'" if self._whole else "the start, as none was saved"

    def _write(self, nimg, content):
        try:
            for name in content.get("journals", ()):  # the state counts on what they hold
                _sync(self._run_dir / name)
            path = write_checkpoint(self._run_dir, self._number, nimg, content)
            self._whole = [*self._whole[-(KEPT - 1) :], path]
            for state in find_checkpoints(self._run_dir):
                if state.path not in self._whole:
                    state.path.unlink(missing_ok=True)
        except OSError as error:
            self._error = error
