import json

import pytest
from click.testing import CliRunner

from benchmarks import save_checkpoint
from tests.train_cli import logging_as_before


def run(*args):
    small = (
        "--cfg=digits",
        "--resolution=8",
        "--channels=1",
        "--device=cpu",
        "--batch=8",
        "--gamma=1",
        "--g-scale=0.00390625",
        "--d-scale=0.00390625",
    )
    with logging_as_before():
        return CliRunner().invoke(save_checkpoint.main, [*small, *args])


@pytest.fixture
def fast_disk(monkeypatch, tmp_path):
    """A block must outlast the writing of its state."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.slow
@pytest.mark.usefixtures("fast_disk")
def test_pause_and_all_that_is_lost_are_told_apart(tmp_path):
    path = tmp_path / "out" / "result.json"
    result = run("--iterations=40", "--blocks=2", f"--save={path}")
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    assert report["seconds_of_a_pause"] > 0
    assert len(report["seconds_lost_in_all_by_each_save"]) == 2
    shares = report["percent_of_training_time"]["a save in 600 s (default)"]
    pause = report["seconds_of_a_pause"] / 600 * 100
    assert shares["pause"] == pytest.approx(pause, abs=1e-4)
    assert set(shares) == {"pause", "in all"}
