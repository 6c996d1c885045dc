"""Training outlives a full disk: what cannot be written is warned of, and tried again."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def disk_may_be_full(what: str) -> Iterator[None]:
    """Context in which a full disk only leads to a warning that `what` was not written."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        logger.warning("Warning: %s: %s; training goes on.", what, error.strerror)


def append_whole(path: str | os.PathLike, data: bytes) -> None:
    """Append bytes to a file, which is made where there is none, all of them or none.

    Raises:
        OSError: There is no room.
    """
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            while data:  # a disk that is nearly full takes a part
                data = data[file.write(data) :]
        except OSError:
            os.truncate(path, size)
            raise


class Journal:
    """A text file that is appended to; what finds no room waits for the next time.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = Path(path)
        self.pending = ""  # not written yet

    def append(self, text: str) -> None:
        """Write `text` after all that came before it, at once and whole."""
        self.pending += text
        with disk_may_be_full(f"'{self._path.name}' lags behind"):
            append_whole(self._path, self.pending.encode())
            self.pending = ""


class LogFile(logging.FileHandler):
    """A log file that says nothing where a line finds no room."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it
        """Drop the line; others are told by whoever could not write."""
