"""Checkpoints on disk: written beside training, checked, and read again.

A checkpoint is a file of `torch.save` that `torch.load(..., weights_only=True)` reads. Its name
holds which save of the run it is, the images seen, and the start of its SHA-256, so that a damaged
file is known for what it is.
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
from typing import IO, Any, NamedTuple, cast

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
    """A checkpoint cannot be written, read or used."""


class CheckpointFile(NamedTuple):
    """A checkpoint by its name; sorts by age."""

    number: int  # of the saves of the run
    nimg: int  # images seen; a run that has diverged may have gone back
    path: Path


def find_checkpoints(run_dir: str | os.PathLike) -> list[CheckpointFile]:
    """The checkpoints of a run folder by their names, the newest first; unread."""
    found = []
    for path in Path(run_dir).glob("checkpoint-*.pt"):
        if name := _NAME.fullmatch(path.name):
            found.append(CheckpointFile(int(name[1]), int(name[2]), path))
    return sorted(found, reverse=True)


def read_newest_checkpoint(run_dir: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint of a run folder that is whole; each that is not is named in a warning.

    Returns:
        (path, content).

    Raises:
        CheckpointError: There is none.
    """
    for checkpoint in find_checkpoints(run_dir):
        try:
            return checkpoint.path, read_checkpoint(checkpoint.path)
        except CheckpointError as error:
            logger.warning("Warning: %s; looking for the one before it.", error)
    raise CheckpointError(
        f"'{run_dir}' holds no checkpoint that can be used; start a new run: with --restart, "
        "without --resume"
    )


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
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


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a checkpoint has the checksum that its name tells.

    Raises:
        OSError: It cannot be read.
    """
    name = _NAME.fullmatch(Path(path).name)
    return name is not None and _digest(path) == name[3]


def _check_sizes(path: Path) -> None:
    """torch.save() packs nothing; what unpacks to more than the file holds was made by others."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise CheckpointError(f"'{path.name}' unpacks to more than it holds; it is not used")


def write_checkpoint(
    run_dir: str | os.PathLike, number: int, nimg: int, content: dict[str, Any]
) -> Path:
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

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._error: OSError | None = None

    def save(self, content: dict[str, Any]) -> None:
        try:
            torch.save(content, cast(IO[bytes], self))  # which needs write() and flush() alone
        except Exception:
            # torch wraps what write() raises, or replaces it.
            raise self._error or OSError(errno.EIO, "torch.save() failed") from None

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self._error = self._error or error
            raise
        self._hash.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._hash.hexdigest()[:16]


def _digest(path: str | os.PathLike) -> str:
    return file_sha256(path)[:16]


def _sync(path: Path) -> None:
    """Bring a file or folder to disk; Windows does so by itself."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_to_cpu(tree: Any) -> Any:
    """Nested dicts, lists and tuples with all tensors copied to the CPU."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: copy_to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(copy_to_cpu(value) for value in tree)
    return tree


class CheckpointWriter:
    """Writes the checkpoints of one run in a thread; training waits only while they are copied.

    The `KEPT` newest that this class has seen whole stay, all others are removed once a newer one
    has been read back. What cannot be written is warned of and tried again at the next save.

    Args:
        run_dir: The run folder; unfinished files that a killed process left are removed.
        resumed_from: Path of the checkpoint that the run was resumed from, or None.
    """

    def __init__(
        self, run_dir: str | os.PathLike, resumed_from: str | os.PathLike | None = None
    ) -> None:
        self._run_dir = Path(run_dir)
        self._whole = [] if resumed_from is None else [Path(resumed_from)]
        self._number = max((found.number for found in find_checkpoints(run_dir)), default=0)
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._failed = 0
        self._reason: str | None = None
        for part in self._run_dir.glob(".*.part"):
            part.unlink(missing_ok=True)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, nimg: int, content: dict[str, Any]) -> None:
        """Start to write a checkpoint; what it holds may change as soon as this returns.

        Args:
            nimg: Images seen.
            content: Nested dicts, lists and tuples of tensors and plain values, by name.

        Raises:
            CheckpointError: `ATTEMPTS` saves in a row have failed.
        """
        self.wait()
        content = copy_to_cpu({"format": FORMAT, **content})
        self._number += 1
        self._thread = threading.Thread(target=self._write, args=(nimg, content))
        self._thread.start()

    def poll(self) -> None:
        """Report how the latest save ended, if it has; raises like `save`."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
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

    def finish(self) -> None:
        """Wait for the last save of a run; raises CheckpointError where it failed."""
        if self._join() is not None:
            raise self._stop("the last checkpoint could not be saved")

    def _join(self) -> str | None:
        """Wait for the thread; returns why its save failed, or None."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        self._failed = 0 if error is None else self._failed + 1
        self._reason = None if error is None else error.strerror or first_line(error)
        return self._reason

    def _stop(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{what} ({self._reason}); make room at '{self._run_dir}' and give the same command "
            f"again: it resumes from {self._newest()}"
        )

    def _newest(self) -> str:
        return f"'{self._whole[-1].name}'" if self._whole else "the start, as none was saved"

    def _write(self, nimg: int, content: dict[str, Any]) -> None:
        try:
            for name in content.get("journals", ()):  # the checkpoint counts on what they hold
                _sync(self._run_dir / name)
            path = write_checkpoint(self._run_dir, self._number, nimg, content)
            self._whole = [*self._whole[-(KEPT - 1) :], path]
            for found in find_checkpoints(self._run_dir):
                if found.path not in self._whole:
                    found.path.unlink(missing_ok=True)
        except OSError as error:
            self._error = error
