import hashlib

import pytest

from dnnlib import hashing


@pytest.mark.parametrize("size", [0, 5, 6, 7])
def test_of_a_file_by_portions(tmp_path, monkeypatch, size):
    monkeypatch.setattr(hashing, "_CHUNK", 3)
    (tmp_path / "file").write_bytes(b"abcdefg"[:size])
    expected = hashlib.sha256(b"abcdefg"[:size]).hexdigest()
    assert hashing.file_sha256(tmp_path / "file") == expected
