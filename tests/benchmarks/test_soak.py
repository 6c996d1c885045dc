"""What the soak script takes for recovered, lost and equal."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("fcntl")  # full disks are made by limits that only Linux has
from benchmarks import faults, soak
from training.run.checkpoint_file import write_checkpoint

NIMG = 6016
REFUSAL = "Error: 'x' holds no checkpoint that can be used; start a new run: ..."


class Said(faults.Trainer):
    """A process that is over and has said this."""

    def __init__(self, text, code=0, suffered=()):
        self._heard, self.faults = text.encode(), list(suffered)
        self.may_end_with = {0, *([code] if suffered else [])}
        stdout = SimpleNamespace(closed=True)
        self.process = SimpleNamespace(stdout=stdout, poll=lambda: code)


@pytest.fixture
def outdir(tmp_path):
    """A run with two states."""
    (tmp_path / "00000-x").mkdir()
    for nimg in (3008, NIMG):
        content = {"format": 1, "w": torch.arange(99)}
        write_checkpoint(tmp_path / "00000-x", nimg, nimg, content)
    return tmp_path


def test_a_run_that_starts_over_beside_a_whole_state_has_not_recovered(outdir):
    expectation = soak.Expectation.of(outdir)
    assert expectation == ([], NIMG)
    assert expectation.met_by(Said("Resuming 0\nAdversarial stage from kimg 6.0"))
    assert not expectation.met_by(Said("Resuming 0\nCooperative stage from kimg 3.0"))
    assert not expectation.met_by(Said("Run folder: 1\nCooperative stage from kimg 0.0"))


def test_starting_over_is_right_without_a_state(tmp_path):
    expectation = soak.Expectation.of(tmp_path)
    assert expectation.met_by(Said("Run folder: 1\nCooperative stage from kimg 0.0"))
    assert not expectation.met_by(Said("Resuming 0\nAdversarial stage from kimg 6.0"))


@pytest.mark.parametrize("how", [faults.truncated, faults.flipped])
def test_a_damaged_state_must_be_named(outdir, how):
    newest, _ = faults.find_run_checkpoints(outdir)
    newest.path.write_bytes(how(bytearray(newest.path.read_bytes()), random.Random(0)))
    expectation = soak.Expectation.of(outdir)
    assert expectation == ([newest.path.name], 3008)
    went_on = "Resuming 0\nCooperative stage from kimg 3.0"
    assert not expectation.met_by(Said(went_on))
    assert expectation.met_by(Said(f"Warning: {newest.path.name} is damaged\n{went_on}"))


def test_with_all_states_damaged_a_run_must_refuse_and_name_them(outdir):
    for state in faults.find_run_checkpoints(outdir):
        state.path.write_bytes(b"")
    expectation = soak.Expectation.of(outdir)
    named = "\n".join(expectation.damaged)
    assert len(expectation.damaged) == 2
    assert expectation.met_by(Said(f"{named}\n{REFUSAL}", code=1))
    assert not expectation.met_by(Said(REFUSAL, code=1))
    assert not expectation.met_by(Said(f"{named}\nCooperative stage from kimg 0.0"))


def test_a_process_that_was_killed_at_once_is_not_judged(outdir):
    expectation = soak.Expectation.of(outdir)
    assert expectation.met_by(Said("", code=-9, suffered=["killed"])) is None
    assert expectation.met_by(Said("Traceback", code=1)) is False


def test_how_a_process_may_end():
    assert Said("Error: no room", code=1, suffered=["full disk"]).ended_well
    assert not Said("Traceback ...\nOSError", code=1, suffered=["full disk"]).ended_well
    assert not Said("Error: no room", code=1).ended_well


def test_equal_to_the_bit():
    a = {"x": [torch.tensor([1.0, 2.0]), "y", (1, None)]}
    assert soak.same(a, {"x": [torch.tensor([1.0, 2.0]), "y", (1, None)]})
    assert not soak.same(a, {"x": [torch.tensor([1.0, 2.0 + 1e-6]), "y", (1, None)]})
    assert not soak.same(a, {"x": [torch.tensor([1.0, 2.0]).double(), "y", (1, None)]})
    assert not soak.same(a, {})


def run_folder(folder, nimg, position, seen):
    folder.mkdir(parents=True)
    parts = {
        "reporter": {"tick": 1, "tick_nimg": nimg, "spent": random.random()},
        "training": {"progress": {"nimg": nimg}},
        "data": {"position": position},
    }
    rest = {"random": [1], "dataset": "x"}
    write_checkpoint(folder, nimg, nimg, {"format": 1, "parts": parts, **rest})
    lines = [
        f'{{"Loss/signs/real": {{"num": {num}}}, "timestamp": {random.random()}}}' for num in seen
    ]
    (folder / "stats.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("nimg", "position", "seen", "lost", "differ"),
    [
        (64, 64, [32, 32], 0, []),
        (64, 96, [32, 32], 32, ["data"]),
        (64, 64, [32, 64], 32, ["stats.jsonl"]),
        (64, 64, [32], 32, ["stats.jsonl"]),
        (96, 64, [32, 32], 32, ["reporter", "training"]),
    ],
)
def test_images_lost_or_repeated(tmp_path, nimg, position, seen, lost, differ):
    expected = run_folder(tmp_path / "a" / "0", 64, 64, [32, 32])
    other = run_folder(tmp_path / "b" / "0", nimg, position, seen)
    assert soak.images_off(other, expected) == lost
    assert soak.differences(other, expected) == differ


def test_a_real_process_is_heard_and_killed():
    command = [sys.executable, "-uc", "print('hello'); import time; time.sleep(99)"]
    with faults.Trainer(command, nimg=1) as trainer:
        while "hello" not in trainer.said():
            assert not trainer.ends_within(0.01)
        assert trainer.kill() and trainer.ended_well
    with pytest.raises(KeyboardInterrupt), faults.Trainer(command, nimg=1) as trainer:
        raise KeyboardInterrupt
    assert trainer.code == -9, "no process is left behind"
