import errno
import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnnlib import full_disk
from dnnlib.full_disk import Journal, disk_may_be_full
from tests import tiny
from torch_utils.training_stats import TrainingStats
from training.monitor.reporting import Reporter


def no_room(code=errno.ENOSPC):
    return OSError(code, "No space left on device")


def test_a_full_disk_is_warned_of(caplog):
    with disk_may_be_full("no picture"):
        raise no_room()
    assert caplog.messages == ["Warning: no picture: No space left on device; training goes on."]


def test_other_errors_come_through():
    with pytest.raises(PermissionError), disk_may_be_full("no picture"):
        raise PermissionError(errno.EACCES, "Permission denied")


def nearly_full(monkeypatch, room):
    """Files take `room` bytes and no more."""

    class File:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, data):
            if self.file.tell() >= room:
                raise no_room()
            return self.file.write(data[: room - self.file.tell()])

    monkeypatch.setattr(
        full_disk, "open", lambda *args, **kwargs: File(open(*args, **kwargs)), raising=False
    )


def test_lines_wait_for_room_and_are_never_cut(tmp_path, monkeypatch):
    path = tmp_path / "stats.jsonl"
    journal = Journal(path)
    journal.append("one\n")
    with monkeypatch.context() as context:
        nearly_full(context, room=6)
        journal.append("two\n")
        journal.append("three\n")
        assert path.read_text() == "one\n" and journal.pending == "two\nthree\n"
    journal.append("four\n")
    assert path.read_text() == "one\ntwo\nthree\nfour\n" and journal.pending == ""


def test_a_run_reports_through_a_full_disk(tmp_path, monkeypatch, caplog):
    stats = TrainingStats()
    with Reporter(tiny.config(), tmp_path, stats, torch.device("cpu")) as reporter:
        reporter.end_tick(32, "cooperative", {})
        with monkeypatch.context() as context:
            nearly_full(context, room=10)
            reporter.end_tick(64, "cooperative", {})
        assert reporter.state_dict()["pending"], "a state that is saved now holds the tick"
        reporter.end_tick(96, "cooperative", {})
    lines = (tmp_path / "stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["Progress/tick"]["mean"] for line in lines] == [0, 1, 2]
    assert "stats.jsonl' lags behind" in caplog.text and "TensorBoard lacks a tick" in caplog.text
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("Progress/tick")] == [0, 0]
