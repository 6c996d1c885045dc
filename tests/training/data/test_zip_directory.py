import io
import zipfile

import pytest

from training.data.zip_directory import MAX_ENTRY_BYTES, count_members

MANY = 70_000  # more than 65535, from which on a zip needs the records of zip64


def zip_of(count, comment=b"", before=b"", extra=b""):
    """A zip of empty members; `before`: what a self-extracting one starts with."""
    file = io.BytesIO()
    file.write(before)
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for index in range(count):
            info = zipfile.ZipInfo(f"{index:05d}.png")
            info.extra = extra
            archive.writestr(info, b"")
    return file


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"comment": b"c"},
        {"comment": b"c" * 65535},
        {"comment": b"PK\x05\x06"},
        {"before": b"#!/bin/sh\n" * 100},
    ],
    ids=["plain", "comment", "longest comment", "signature in the comment", "self-extracting"],
)
def test_counts_what_zipfile_finds(count, options):
    file = zip_of(count, **options)
    try:
        with zipfile.ZipFile(file) as archive:
            found = len(archive.namelist())
    except zipfile.BadZipFile:  # takes the comment for the end of the zip
        with pytest.raises(zipfile.BadZipFile):
            count_members(file, 10**6)
    else:
        assert count_members(file, 10**6) == found == count


@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n" * 100])
def test_counts_of_zip64(before):
    assert count_members(zip_of(MANY, before=before), 10**6) == MANY


def test_counts_no_further_than_it_must():
    assert count_members(zip_of(1000), 10) == 1000  # as declared
    file = zip_of(1000)
    data = bytearray(file.getvalue())
    data[-14:-10] = bytes([3, 0, 3, 0])  # declares three
    assert count_members(io.BytesIO(data), 10) == 11
    assert count_members(io.BytesIO(data), 10**6) == 1000


def test_entries_of_honest_size():
    extra = b"\x75\x70" + (900).to_bytes(2, "little") + bytes(900)
    assert count_members(zip_of(100, extra=extra), 10**6) == 100
    extra = b"\x75\x70" + (2 * MAX_ENTRY_BYTES).to_bytes(2, "little") + bytes(2 * MAX_ENTRY_BYTES)
    with pytest.raises(zipfile.BadZipFile, match="bytes for 100 members"):
        count_members(zip_of(100, extra=extra), 10**6)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06", bytes(100), bytes(100_000)])
def test_no_zip(data):
    with pytest.raises(zipfile.BadZipFile, match="no directory"):
        count_members(io.BytesIO(data), 10)
