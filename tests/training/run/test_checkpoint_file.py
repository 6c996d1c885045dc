import errno
import logging
import os
import subprocess
import threading
import zipfile

import pytest
import torch

from tests.hostile_pickles import Call
from training.run import checkpoint_file as checkpoint
from training.run.checkpoint_file import (
    CheckpointError,
    CheckpointWriter,
    find_checkpoints,
    read_checkpoint,
    read_newest_checkpoint,
    write_checkpoint,
)


def content(value=1.0, **more):
    weights = {"weight": torch.full([300, 10], value), "count": 7}
    return {"format": checkpoint.FORMAT, "parts": [weights, (1, "a", None)], **more}


def saved(writer, nimg, **more):
    writer.save(nimg, content(**more))
    writer.wait()


def nimgs(folder):
    return [state.nimg for state in find_checkpoints(folder)]


def test_what_is_read_is_what_was_written(tmp_path):
    path = write_checkpoint(tmp_path, 7, 1234, content(0.5))
    assert path.name.startswith("checkpoint-000007-000001234-")
    read = read_checkpoint(path)
    assert torch.equal(read["parts"][0]["weight"], torch.full([300, 10], 0.5))
    assert read["parts"][1] == (1, "a", None)
    assert torch.load(path, weights_only=True)["parts"][0]["count"] == 7
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_copy_is_written(tmp_path):
    writer, weights = CheckpointWriter(tmp_path), {"weight": torch.zeros(3)}
    writer.save(1, {"parts": weights})
    weights["weight"] += 1  # training goes on meanwhile
    writer.wait()
    _, read = read_newest_checkpoint(tmp_path)
    assert torch.equal(read["parts"]["weight"], torch.zeros(3))


def test_two_are_kept(tmp_path):
    writer = CheckpointWriter(tmp_path)
    for nimg in (0, 10, 20, 30):
        saved(writer, nimg)
    assert nimgs(tmp_path) == [30, 20]


def test_a_run_that_goes_on_from_an_older_state_keeps_that_one(tmp_path):
    paths = [write_checkpoint(tmp_path, nimg, nimg, content(nimg)) for nimg in (10, 20)]
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    for name in (".checkpoint-0123.part", ".0123456789abcdef.part"):
        (tmp_path / name).write_bytes(b"of a process that was killed")
    path, _ = read_newest_checkpoint(tmp_path)
    writer = CheckpointWriter(tmp_path, resumed_from=path)
    assert nimgs(tmp_path) == [20, 10] and not list(tmp_path.glob(".*"))
    saved(writer, 15)
    assert nimgs(tmp_path) == [15, 10], "the damaged one is gone"


def damaged(data, how):
    if how == "a flipped bit":
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    return {"truncated": data[:-10], "empty": b"", "longer": data + b"\0"}[how]


@pytest.mark.parametrize("how", ["a flipped bit", "truncated", "empty", "longer"])
def test_a_damaged_state_is_named_and_the_one_before_is_used(tmp_path, caplog, how):
    older, newer = (write_checkpoint(tmp_path, nimg, nimg, content(nimg)) for nimg in (10, 20))
    newer.write_bytes(damaged(newer.read_bytes(), how))
    path, read = read_newest_checkpoint(tmp_path)
    assert path == older and (read["parts"][0]["weight"] == 10).all()
    [record] = caplog.records
    assert record.levelno == logging.WARNING and newer.name in record.getMessage()


def test_no_state_that_can_be_used(tmp_path):
    path = write_checkpoint(tmp_path, 1, 10, content())
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds no checkpoint that can be used; start a new"):
        read_newest_checkpoint(tmp_path)


def under_its_checksum(folder, data):
    (folder / "x").write_bytes(data)
    path = folder / f"checkpoint-000001-000000001-{checkpoint._digest(folder / 'x')}.pt"
    (folder / "x").rename(path)
    return path


def test_nothing_in_a_state_is_executed(tmp_path):
    sentinel = tmp_path / "sentinel"
    hostile = {"format": checkpoint.FORMAT, "parts": Call(os.system, f"touch '{sentinel}'")}
    torch.save(hostile, tmp_path / "hostile")
    path = under_its_checksum(tmp_path, (tmp_path / "hostile").read_bytes())
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(path)
    assert not sentinel.exists()


def test_a_state_that_unpacks_to_more_than_it_holds(tmp_path):
    torch.save(content(), tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain:
        with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
            bomb.writestr("archive/data/99", bytes(1 << 20))
    path = under_its_checksum(tmp_path, (tmp_path / "bomb").read_bytes())
    with pytest.raises(CheckpointError, match="unpacks to more than it holds"):
        read_checkpoint(path)


def test_another_format(tmp_path):
    path = write_checkpoint(tmp_path, 1, 1, {"format": 99})
    with pytest.raises(CheckpointError, match="no checkpoint of this version"):
        read_checkpoint(path)


def fail_to_write(monkeypatch, code=errno.ENOSPC):
    def write(self, data):
        self._error = OSError(code, os.strerror(code))
        raise self._error

    monkeypatch.setattr(checkpoint._HashingWriter, "write", write)


def test_a_full_disk_is_warned_of_and_tried_again(tmp_path, monkeypatch, caplog):
    writer = CheckpointWriter(tmp_path)
    saved(writer, 10)
    with monkeypatch.context() as full:
        fail_to_write(full)
        for nimg in (20, 30):
            saved(writer, nimg)
    assert [record.getMessage() for record in caplog.records] == [
        "Warning: the checkpoint could not be saved (No space left on device); "
        "trying again at the next save."
    ] * 2
    assert nimgs(tmp_path) == [10] and len(list(tmp_path.iterdir())) == 1
    saved(writer, 40)
    with monkeypatch.context() as full:
        fail_to_write(full)
        for nimg in (50, 60):
            saved(writer, nimg)  # the count began again
    assert nimgs(tmp_path) == [40, 10] and read_newest_checkpoint(tmp_path)[0].exists()


def test_three_failures_stop(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path)
    saved(writer, 10)
    fail_to_write(monkeypatch)
    for nimg in (20, 30):
        saved(writer, nimg)
    with pytest.raises(CheckpointError) as caught:
        saved(writer, 40)
    message = str(caught.value)
    assert message.startswith("3 saves of the checkpoint in a row have failed (No space left")
    assert f"make room at '{tmp_path}'" in message
    assert find_checkpoints(tmp_path)[0].path.name in message


def test_the_last_save_must_not_fail(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path)
    writer.finish()
    saved(writer, 10)
    fail_to_write(monkeypatch)
    writer.save(20, content())
    with pytest.raises(CheckpointError, match="^the last checkpoint could not be saved .No space"):
        writer.finish()


def test_a_disk_that_loses_what_is_written(tmp_path, monkeypatch, caplog):
    writer = CheckpointWriter(tmp_path)
    saved(writer, 10)
    monkeypatch.setattr(checkpoint, "_digest", lambda path: "0" * 16)
    saved(writer, 20)
    assert nimgs(tmp_path) == [10], "the previous one stays until the new one was read back"
    assert "reads back as something else" in caplog.text


def test_a_disk_that_is_really_full(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (that takes root)")
    try:
        writer = CheckpointWriter(disk)
        saved(writer, 10)
        filler = disk / "filler"
        with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        saved(writer, 20)
        assert "could not be saved (No space left on device)" in caplog.text
        assert nimgs(disk) == [10] and read_newest_checkpoint(disk)
        filler.unlink()
        saved(writer, 30)
        assert nimgs(disk) == [30, 10]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_training_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    go, written = threading.Event(), write_checkpoint

    def slow(*args):
        go.wait()
        return written(*args)

    monkeypatch.setattr(checkpoint, "write_checkpoint", slow)
    writer = CheckpointWriter(tmp_path)
    writer.save(10, content())
    writer.poll()
    assert writer.busy and not find_checkpoints(tmp_path)
    go.set()
    writer.wait()
    assert nimgs(tmp_path) == [10] and not writer.busy
