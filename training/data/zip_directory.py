"""How many members a zip has, counted in its directory before anything is made of them.

Python's zipfile makes an object of each entry at once: half a kilobyte and five microseconds an
entry, whatever the zip declares. Here its directory is walked in constant memory.
"""

import os
import struct
import zipfile
from typing import BinaryIO, NamedTuple

# PKWARE's APPNOTE.TXT, sections 4.3.12 (entry) and 4.3.14 to 4.3.16 (the three records at the end).
_ENTRY = struct.Struct("<4s24x3H12x")  # lengths of name, extra field and comment
_END64 = struct.Struct("<4s28x2Q8x")  # entries, bytes of the directory
_LOCATOR = struct.Struct("<4s16x")
_END = struct.Struct("<4s6xHL6x")  # entries, bytes of the directory
_MAX_COMMENT = (1 << 16) - 1

MAX_ENTRY_BYTES = 1 << 10  # on average; names and extra fields of real zips take a tenth of it


class _Directory(NamedTuple):
    start: int
    size: int
    declared: int  # entries


def count_members(file: BinaryIO, limit: int) -> int:
    """The number of members of a zip, or the first number found that is above `limit`.

    Args:
        file: The zip; its position is moved.
        limit: Count no further.

    Raises:
        zipfile.BadZipFile: What the zip declares about its directory cannot be.
    """
    directory = _find_directory(file)
    if directory.declared > limit:
        return directory.declared
    if directory.start < 0 or directory.declared * _ENTRY.size > directory.size:
        raise zipfile.BadZipFile(
            f"it declares {directory.declared} members in a directory of {directory.size} bytes"
        )
    count = _walk(file, directory, limit)
    if count <= limit and directory.size > (count + 1) * MAX_ENTRY_BYTES:
        raise zipfile.BadZipFile(f"its directory takes {directory.size} bytes for {count} members")
    return count


def _find_directory(file: BinaryIO) -> _Directory:
    """Find the directory where zipfile finds it: right before the records at the end."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(length - _END.size - _MAX_COMMENT - 1, 0))
    tail = file.read()
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":  # there is a comment
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise zipfile.BadZipFile("it has no directory")
    _, entries, size = _END.unpack_from(tail, at)
    end = length - len(tail) + at
    before = end - _LOCATOR.size - _END64.size
    if before >= 0:
        file.seek(before)
        record = file.read(_END64.size + _LOCATOR.size)
        if record.startswith(b"PK\x06\x06") and record[_END64.size :].startswith(b"PK\x06\x07"):
            _, entries, size = _END64.unpack_from(record)
            end = before
    return _Directory(end - size, size, entries)


def _walk(file: BinaryIO, directory: _Directory, limit: int) -> int:
    """Count entries up to limit + 1; what is damaged is left to zipfile to name."""
    file.seek(directory.start)
    count, left = 0, directory.size
    while left > 0 and count <= limit:
        entry = file.read(_ENTRY.size)
        if len(entry) < _ENTRY.size:
            break
        signature, *lengths = _ENTRY.unpack(entry)
        if signature != b"PK\x01\x02":
            break
        file.seek(sum(lengths), os.SEEK_CUR)
        left -= _ENTRY.size + sum(lengths)
        count += 1
    return count
