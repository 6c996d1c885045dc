"""Going on with a run: by the same command, by --resume, after signals, with other settings."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from tests import tiny
from tests.speed import slow
from tests.train_cli import FEW_CHANNELS, SMALL, invoke, refused, ticks, without_curves
from training import training_loop
from training.launch.attempts import job_name
from training.monitor.curves import save_curves
from training.run.checkpoint_file import find_checkpoints, read_checkpoint, write_checkpoint
from training.run.run_dir import JOB

pytestmark = without_curves

ROOT = Path(train.__file__).parent
TINY = (*SMALL, "--batch=40", "--gamma=0", *FEW_CHANNELS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=40)


def interrupted(monkeypatch, *args, at=400):
    """Call train.py; a signal comes once `at` images have been seen."""
    iterate = training_loop.iterate

    def iterate_and_stop(run):
        iterate(run)
        if run.nimg >= at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "iterate", iterate_and_stop)
        return invoke(*TINY, *args)


def runs(outdir):
    return sorted(path.name[:5] for path in outdir.iterdir())


def seen(run_dir):
    """Images seen, by the newest state."""
    return read_checkpoint(find_checkpoints(run_dir)[0].path)["parts"]["training"]["progress"][
        "nimg"
    ]


@pytest.fixture(scope="module")
def stopped_once(data, tmp_path_factory):
    """The folder of runs with one that a signal has stopped."""
    outdir = tmp_path_factory.mktemp("stopped") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        result = interrupted(patch, f"--data={data}", f"--outdir={outdir}")
    assert result.exit_code == 0
    assert "Stopped by SIGTERM at kimg 0.4; the checkpoint of kimg 0.4 is saved." in result.output
    [run_dir] = outdir.iterdir()
    assert seen(run_dir) == 400 and len(ticks(run_dir)) == 1
    return outdir


@pytest.fixture
def stopped(data, stopped_once, tmp_path):
    """A run that a signal has stopped, for this test alone: (its command line, its folder)."""
    outdir = shutil.copytree(stopped_once, tmp_path / "runs")
    [run_dir] = outdir.iterdir()
    return (f"--data={data}", f"--outdir={outdir}"), run_dir


def test_the_same_command_goes_on(stopped):
    args, run_dir = stopped
    result = invoke(*TINY, *args)
    assert result.exit_code == 0, result.output
    assert f"Resuming the unfinished run {run_dir}; --restart" in result.output
    assert seen(run_dir) == 1000
    assert [tick["Progress/kimg"]["mean"] for tick in ticks(run_dir)] == [0.04, 1.0]
    assert invoke(*TINY, *args).exit_code == 0
    assert runs(run_dir.parent) == ["00000", "00001"], "what is finished is not gone on with"


@pytest.mark.parametrize("options", [slow(["--restart"]), ["--seed=1"], slow(["--batch=20"])])
def test_a_new_run(stopped, options):
    args, run_dir = stopped
    assert invoke(*TINY, *args, *options).exit_code == 0
    assert runs(run_dir.parent) == ["00000", "00001"] and seen(run_dir) == 400


@pytest.mark.slow
def test_a_command_that_is_repeated_does_not_start_over_again(stopped, monkeypatch):
    args, run_dir = stopped
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    output = invoke(*TINY, *args, "--restart").output
    assert "This is not the first attempt: --restart was obeyed by that." in output
    assert runs(run_dir.parent) == ["00000", "00001"], "the older run is of another job"
    (run_dir / JOB).write_text(job_name())
    assert f"Resuming the unfinished run {run_dir}" in invoke(*TINY, *args, "--restart").output
    assert runs(run_dir.parent) == ["00000", "00001"] and seen(run_dir) == 1000


def test_restart_and_a_run_to_go_on_with(stopped):
    args, run_dir = stopped
    line = refused(f"--resume={run_dir}", "--restart", code=2)
    assert "--restart starts a new run, --resume=RUN resumes one" in line


def test_what_is_other_on_this_machine_is_told(stopped):
    args, run_dir = stopped
    output = invoke(*TINY, *args, "--snap=7", "--dry-run").output
    assert "snap: 50 -> 7" in output and f"Resuming the unfinished run {run_dir}" in output


def test_a_dry_run_tells_and_changes_nothing(stopped):
    args, run_dir = stopped
    before = {path.name: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    result = invoke(*TINY, *args, "--dry-run")
    assert f"Resuming the unfinished run {run_dir}" in result.output
    assert "Dry run: nothing was written." in result.output
    after = {path.name: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    assert before | {".lock": 0} == after | {".lock": 0}


@pytest.mark.parametrize("name", ["latest", slow("the folder")])
def test_resume_needs_no_other_options(stopped, name):
    args, run_dir = stopped
    resume = "latest" if name == "latest" else run_dir
    result = invoke(f"--outdir={run_dir.parent}", f"--resume={resume}")
    assert result.exit_code == 0, result.output
    assert f"Resuming the unfinished run {run_dir}.\n" in result.output
    assert runs(run_dir.parent) == ["00000"] and seen(run_dir) == 1000


@pytest.mark.slow
def test_another_batch_and_a_longer_run(stopped):
    args, run_dir = stopped
    result = invoke(f"--resume={run_dir}", "--batch=16", "--kimg=2")
    assert result.exit_code == 0, result.output
    assert "batch: 40 -> 16" in result.output and "kimg: 1 -> 2" in result.output
    assert seen(run_dir) == 2000
    again = invoke(f"--resume={run_dir}", "--kimg=3", "--dry-run")
    assert '"batch": 16' in again.output, "the new settings are the run's from then on"
    for options in ([], ["--dry-run"]):
        line = refused(f"--resume={run_dir}", *options, code=1)
        assert "is finished at kimg 2.0; give a larger --kimg to continue" in line


def test_a_damaged_state_is_named_and_the_one_before_is_used(stopped):
    args, run_dir = stopped
    newest, before = find_checkpoints(run_dir)
    newest.path.write_bytes(newest.path.read_bytes()[:-1])
    result = invoke(*TINY, *args)
    assert result.exit_code == 0
    assert f"'{newest.path.name}' is truncated or damaged" in result.output
    assert seen(run_dir) == 1000 and before.nimg == 40


def test_a_state_that_does_not_fit(stopped):
    args, run_dir = stopped
    path = find_checkpoints(run_dir)[0].path
    content = read_checkpoint(path)
    content["parts"]["training"]["networks"]["G"].popitem()
    write_checkpoint(run_dir, 99, 400, content)
    line = refused(*TINY, *args, code=1)
    assert "the checkpoint does not fit this run (training: " in line and "--restart" in line


@pytest.mark.slow
def test_divergence_may_be_answered_otherwise_than_before(stopped):
    args, run_dir = stopped
    result = invoke(*TINY, *args, "--on-divergence=restore")
    assert result.exit_code == 0, result.output
    assert seen(run_dir) == 1000


@pytest.mark.slow
def test_a_run_that_may_go_back_goes_on(data, tmp_path, monkeypatch):
    """In the midst of a tick, so that its last good tick is a part of the state."""
    args = (f"--data={data}", f"--outdir={tmp_path}", "--on-divergence=restore", "--aug=ada")
    assert interrupted(monkeypatch, *args).exit_code == 0
    [run_dir] = tmp_path.iterdir()
    guard = read_checkpoint(find_checkpoints(run_dir)[0].path)["parts"]["guard"]
    assert guard["progress"]["nimg"] == 40 and guard["model"]["ada"] is not None
    result = invoke(*TINY, *args)
    assert result.exit_code == 0, result.output
    assert seen(run_dir) == 1000


@pytest.mark.slow
def test_signals_that_come_while_a_run_ends(stopped, monkeypatch):
    """Process managers repeat themselves, while curves are drawn."""
    args, run_dir = stopped
    show = training_loop.show_run

    def show_under_signals(run_dir, notes):
        for name in ("SIGTERM", "SIGUSR1"):
            os.kill(os.getpid(), getattr(signal, name))
        show(run_dir, notes)

    monkeypatch.setattr(training_loop, "show_run", show_under_signals)
    monkeypatch.setattr("training.monitor.page.save_curves", save_curves)
    result = interrupted(monkeypatch, *args, at=800)
    assert result.exit_code == 0 and "Stopped by SIGTERM at kimg 0.8" in result.output


def test_runs_that_differ_a_little_are_mentioned(stopped):
    args, run_dir = stopped
    output = invoke(*TINY, *args, "--seed=1", "--dry-run").output
    assert f"{run_dir.name} is unfinished, too, but differs in --seed (0 there)" in output
    assert f"--resume={run_dir} resumes it." in output


def test_data_may_be_named_from_another_folder(stopped, monkeypatch):
    args, run_dir = stopped
    data = Path(args[0].partition("=")[2])
    monkeypatch.chdir(data.parent)
    output = invoke(*TINY, f"--data={data.name}", args[1], "--dry-run").output
    assert f"Resuming the unfinished run {run_dir}" in output


@pytest.mark.slow
def test_a_run_that_was_ended_while_measuring_measures_again(stopped, monkeypatch):
    """The state of a snapshot is saved before its metrics, which take long."""
    args, run_dir = stopped
    monkeypatch.setattr("training.monitor.reporting.KIMG_PER_TICK", 0.2)
    measured = []

    class Killed(BaseException):
        pass

    def measure(_G, path):
        measured.append(path.name)
        if len(measured) == 1:
            end = time.monotonic() + 60
            while seen(run_dir) != 440 and time.monotonic() < end:  # a thread writes it
                time.sleep(0.01)
            raise Killed
        return {"fid": 1.0}

    monkeypatch.setattr("train.open_metrics", lambda config, *_others: (config, lambda: measure))
    with pytest.raises(Killed):
        invoke(*TINY, *args, "--snap=1")
    assert seen(run_dir) == 440
    assert invoke(*TINY, *args, "--snap=1").exit_code == 0
    assert measured[0] == measured[1] and len(measured) > 3


@pytest.mark.slow
def test_what_has_changed_is_in_the_log(stopped):
    _, run_dir = stopped
    assert invoke(f"--resume={run_dir}", "--batch=20").exit_code == 0
    assert "Changed settings: batch: 40 -> 20" in (run_dir / "log.txt").read_text()


def test_nothing_to_go_on_with(tmp_path):
    line = refused(f"--resume={tmp_path / 'nowhere'}", code=2)
    assert "nowhere is no folder of a run; a snapshot to start from needs --data, too" in line
    outdir = f"--outdir={tmp_path / 'runs'}"
    assert "no run in --outdir=" in refused(outdir, "--resume=latest", code=1)
    assert "this folder holds no checkpoint" in refused(f"--resume={tmp_path}", code=1)


def test_networks_of_another_size_are_refused(stopped):
    _, run_dir = stopped
    line = refused(f"--resume={run_dir}", "--d-scale=0.5", "--seed=7", code=2)
    assert "another --seed, --d-scale: leave it out, or start a new run" in line
    assert seen(run_dir) == 400


@pytest.mark.slow
@pytest.mark.parametrize("what", ["snapshot", "state"])
def test_a_run_whose_result_cannot_be_written_is_not_done(stopped, monkeypatch, what):
    args, run_dir = stopped

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if what == "snapshot":
            patch.setattr("training.run.snapshots.save_snapshot", full)
        else:
            patch.setattr("training.run.checkpoint_file.write_checkpoint", full)
        assert "No space left on device" in refused(*TINY, *args, code=1)
    assert seen(run_dir) == 400
    assert invoke(*TINY, *args).exit_code == 0
    assert seen(run_dir) == 1000 and (run_dir / "network-snapshot-000001.pkl").exists()


# A process manager: starts a job, warns it, and starts it again until it reports success.
MANAGER = """
import os, pathlib, signal, subprocess, sys, time
command, outdir, warning = sys.argv[3:], pathlib.Path(sys.argv[1]), sys.argv[2]
job = subprocess.Popen(command, start_new_session=True)
while not list(outdir.glob("*/checkpoint-*.pt")):
    if job.poll() is not None:
        sys.exit("the job ended before it was warned")
    time.sleep(0.05)
os.killpg(job.pid, getattr(signal, warning))  # workers get it, too
sys.exit(job.wait(60))
"""


@pytest.mark.slow
@pytest.mark.parametrize("warning", ["SIGUSR1", "SIGINT"])
def test_under_a_process_manager(data, tmp_path, warning):
    outdir = tmp_path / "runs"
    outdir.mkdir()
    job = [
        sys.executable,
        "train.py",
        f"--data={data}",
        f"--outdir={outdir}",
        *TINY,
        "--kimg=1000",
        "--workers=2",
    ]
    done = subprocess.run(
        [sys.executable, "-c", MANAGER, str(outdir), warning, *job],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Stopped by {warning} at kimg" in done.stdout and "Traceback" not in done.stderr
    [run_dir] = outdir.iterdir()
    assert (
        seen(run_dir) > 0 and time.time() - find_checkpoints(run_dir)[0].path.stat().st_mtime < 60
    )
