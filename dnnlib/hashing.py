"""SHA-256 of files, by portions: they may be larger than memory."""

import hashlib
import os
from typing import IO

_CHUNK = 1 << 20  # bytes


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        add_stream(found, file)
    return found.hexdigest()


def add_stream(found: "hashlib._Hash", stream: IO[bytes]) -> None:
    """Feed a hash with all that is left of a stream."""
    while chunk := stream.read(_CHUNK):
        found.update(chunk)
