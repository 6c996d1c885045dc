"""Runs of several processes, and what happens when one of them is lost."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import train
from tests import tiny
from tests.train_cli import FEW_CHANNELS, SMALL, refused, ticks
from training.run.checkpoint_file import find_checkpoints, read_checkpoint

ROOT = Path(train.__file__).parent
TINY = (*SMALL, "--batch=40", "--gamma=1", *FEW_CHANNELS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=40)


def command(data, outdir, *options):
    return [sys.executable, "train.py", f"--data={data}", f"--outdir={outdir}", *TINY, *options]


def start(args):
    return subprocess.Popen(
        args,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def output_of(process, seconds=120):
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it hangs: {process.communicate()[0][-2000:]}")


def run_of(outdir):
    [run_dir] = outdir.iterdir()
    return run_dir


def wait_for_a_checkpoint(process, outdir, newer_than=-1):
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        states = [s for folder in outdir.glob("0*") for s in find_checkpoints(folder)]
        if states and max(states).nimg > newer_than:
            return max(states).nimg
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"it ended, or hangs: {process.communicate()[0][-2000:]}")


def trainers(process):
    """The processes that train, by rank: in the order in which they were started."""
    children = psutil.Process(process.pid).children()
    return [c for c in children if "spawn_main" in " ".join(c.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["spawned", "torchrun"])
def test_rank_0_measures_while_the_others_wait(data, tmp_path, monkeypatch, launcher):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    detector = tiny.write_detector(tmp_path / "own.pt")
    options = ("--metrics=fid40_full", f"--detector={detector}", "--timeout-minutes=0.5")
    args = command(data, tmp_path / "runs", *options)
    if launcher == "spawned":
        args.append("--gpus=2")
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        args[1:1] = torchrun
    process = start(args)
    output = output_of(process)
    assert process.returncode == 0, output
    run_dir = run_of(tmp_path / "runs")
    lines = (run_dir / "metric-fid40_full@own.jsonl").read_text().splitlines()
    assert len(lines) == len(list(run_dir.glob("network-snapshot-*.pkl"))) == 2
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1, "rank 0 alone writes"


@pytest.mark.slow
def test_spawned_processes_and_another_count_on_resume(data, tmp_path):
    outdir = tmp_path / "runs"
    output = output_of(start(command(data, outdir, "--gpus=2", "--coop-kimg=1", "--kimg=2")))
    run_dir = run_of(outdir)
    assert output.count("Run folder: ") == 1 and f"Done. Open {run_dir}" in output
    assert [tick["Progress/kimg"]["mean"] for tick in ticks(run_dir)] == [0.04, 1.0, 2.0]
    assert ticks(run_dir)[0]["Loss/scores/real"]["num"] == 40, "what both have seen"
    state = read_checkpoint(find_checkpoints(run_dir)[0].path)
    assert state["parts"]["data"]["position"] == 2000 and len(state["random"]) == 2
    again = start([sys.executable, "train.py", f"--resume={run_dir}", "--gpus=1", "--kimg=3"])
    output = output_of(again)
    assert "gpus: 2 -> 1" in output and "Done." in output
    assert [tick["Progress/kimg"]["mean"] for tick in ticks(run_dir)][-1] == 3.0


@pytest.mark.slow
def test_a_process_that_dies_ends_all(data, tmp_path):
    outdir = tmp_path / "runs"
    process = start(command(data, outdir, "--gpus=2", "--kimg=1000", "--save-minutes=0.001"))
    wait_for_a_checkpoint(process, outdir, newer_than=40)
    trainers(process)[1].kill()
    output = output_of(process)
    assert process.returncode == 1
    assert "Error: process 1 was killed by signal 9" in output
    assert read_checkpoint(find_checkpoints(run_of(outdir))[-1].path)


@pytest.mark.slow
def test_a_refusal_under_torchrun_is_one_line(data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    train_twice = [*torchrun, "--nproc-per-node=2", *command(data, tmp_path, "--resume=latest")[1:]]
    process = start(train_twice)
    output = output_of(process)
    assert process.returncode == 1
    assert output.count("Error: --resume=latest: no run in --outdir") == 1
    assert "Connection closed" not in output and "rank1" not in output


@pytest.mark.parametrize(
    ("minutes", "told"),
    [
        ("nan", "must be a finite number"),
        ("-5", "must be above 0 and at most 10080"),
        ("1e12", "must be above 0 and at most 10080"),
    ],
)
def test_timeouts_under_torchrun(monkeypatch, minutes, told):
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    line = refused("--device=cpu", f"--timeout-minutes={minutes}", code=2)
    assert f"--timeout-minutes {told}" in line


@pytest.mark.slow
def test_a_run_whose_parent_is_killed_is_resumed_at_once(data, tmp_path):
    """What it has spawned outlives it for a moment."""
    outdir = tmp_path / "runs"
    process = start(command(data, outdir, "--gpus=2", "--kimg=5"))
    wait_for_a_checkpoint(process, outdir)
    process.kill()
    again = start(command(data, outdir, "--gpus=2", "--kimg=5"))
    output_of(process)
    output = output_of(again)
    assert "Resuming the unfinished run" in output and "Done." in output
    assert run_of(outdir)


@pytest.mark.slow
def test_an_error_of_the_system_is_one_line_with_several_processes(data, tmp_path):
    outdir = tmp_path / "runs"
    assert "Done." in output_of(start(command(data, outdir)))
    (run_of(outdir) / ".lock").unlink()
    (run_of(outdir) / ".lock").mkdir()
    options = [f"--resume={run_of(outdir)}", "--kimg=2", "--gpus=2"]
    output = output_of(start([sys.executable, "train.py", *options]))
    assert "Error: [Errno 21] Is a directory" in output.strip().splitlines()[-1]
    assert "Traceback" not in output and "exit code" not in output


@pytest.mark.slow
def test_data_that_are_replaced_end_all_with_the_state_saved(data, tmp_path):
    outdir, path = tmp_path / "runs", tmp_path / "data.zip"
    shutil.copy(data, path)
    process = start(command(path, outdir, "--gpus=2", "--kimg=1000", "--save-minutes=0.001"))
    wait_for_a_checkpoint(process, outdir, newer_than=40)  # the first tick is over
    tiny.write_data(path, count=41)
    output = output_of(process)
    assert process.returncode == 1 and "has been replaced" in output.strip().splitlines()[-1]
    run_dir = run_of(outdir)
    assert find_checkpoints(run_dir)[0].nimg >= 4000, "of the tick that noticed"
    shutil.copy(data, path)
    options = ("--gpus=2", "--kimg=1000", f"--resume={run_dir}", "--dry-run")
    output = output_of(start(command(path, outdir, *options)))
    assert f"Resuming the unfinished run {run_dir}." in output


@pytest.mark.slow
def test_a_process_that_hangs_ends_all(data, tmp_path):
    outdir = tmp_path / "runs"
    process = start(command(data, outdir, "--gpus=2", "--kimg=1000", "--timeout-minutes=0.05"))
    wait_for_a_checkpoint(process, outdir)
    stopped = trainers(process)[1]
    stopped.suspend()
    output = output_of(process)
    assert process.returncode == 1
    assert "Error: a process has kept the others waiting" in output
    assert not stopped.is_running()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "name"), [(os.killpg, "SIGINT"), (os.kill, "SIGUSR1")], ids=["Ctrl-C", "SIGUSR1"]
)
def test_a_signal_stops_all_of_them_at_one_iteration(data, tmp_path, send, name):
    outdir = tmp_path / "runs"
    process = start(command(data, outdir, "--gpus=2", "--kimg=1000"))
    wait_for_a_checkpoint(process, outdir)
    send(process.pid, getattr(signal, name))  # Ctrl-C goes to all that share the terminal
    output = output_of(process)
    assert process.returncode == 0, output
    assert f"Stopped by {name} at kimg" in output
    assert "is saved. The same command resumes from there." in output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_while_the_processes_start_ends_all(data, tmp_path, name):
    process = start(command(data, tmp_path / "runs", "--gpus=2", "--kimg=1000"))
    workers = wait_for_trainers(process)  # which have yet to import torch
    os.killpg(process.pid, getattr(signal, name))
    output = output_of(process)
    assert process.returncode == 1, output
    assert output.endswith(f"Error: stopped by {name}\n") and "Traceback" not in output
    assert not any(worker.is_running() for worker in workers)
    assert not list((tmp_path / "runs").iterdir()), "an empty run is of no use"


def wait_for_trainers(process):
    while process.poll() is None and len(trainers(process)) < 2:
        time.sleep(0.01)
    return trainers(process)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["starting", "training"])
def test_processes_end_with_the_one_that_started_them(data, tmp_path, training):
    outdir = tmp_path / "runs"
    process = start(command(data, outdir, "--gpus=2", "--kimg=1000"))
    workers = wait_for_trainers(process)
    if training:
        wait_for_a_checkpoint(process, outdir)
    process.kill()
    _, left = psutil.wait_procs(workers, timeout=60)
    assert not left
    process.communicate()
    if training:
        assert read_checkpoint(find_checkpoints(run_of(outdir))[0].path)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


TORCHRUN = (sys.executable, "-W", "ignore", "-m", "torch.distributed.run")


def agents(data, outdir, *options):
    """Two torchrun agents of one process each, as on two machines."""
    port = free_port()
    return [
        start(
            [
                *TORCHRUN,
                "--nnodes=2",
                "--nproc-per-node=1",
                f"--node-rank={node}",
                "--master-addr=127.0.0.1",
                f"--master-port={port}",
                *command(data, outdir, *options)[1:],
            ]
        )
        for node in range(2)
    ]


def ranks(agent):
    """The processes that torchrun has started, by rank."""
    children = psutil.Process(agent.pid).children()
    return {int(child.environ()["RANK"]): child for child in children}


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed_and_a_signal_to_one_stops_all(data, tmp_path):
    outdir = tmp_path / "runs"
    agent = start(
        [
            *TORCHRUN,
            "--standalone",
            "--nproc-per-node=2",
            "--max-restarts=1",
            "--monitor-interval=1",
            *command(data, outdir, "--kimg=1000", "--save-minutes=0.001")[1:],
        ]
    )
    reached = wait_for_a_checkpoint(agent, outdir, newer_than=40)
    before = ranks(agent)
    before[1].kill()
    psutil.wait_procs(before.values(), timeout=60)
    [saved, *_] = find_checkpoints(run_of(outdir))
    wait_for_a_checkpoint(agent, outdir, newer_than=saved.nimg)
    ranks(agent)[1].send_signal(signal.SIGUSR1)  # and not to the one that speaks for all
    output = output_of(agent)
    assert agent.returncode == 0, output
    assert "Resuming the unfinished run" in output and saved.nimg >= reached
    [kimg] = re.findall(r"the checkpoint of kimg (\S+) is saved", output)
    assert float(kimg) == round(find_checkpoints(run_of(outdir))[0].nimg / 1e3, 1)
    assert "Stopped by SIGUSR1" in output


@pytest.mark.slow
def test_two_machines_one_of_which_is_lost_and_started_again(data, tmp_path):
    outdir = tmp_path / "runs"
    first, second = agents(
        data, outdir, "--kimg=1000", "--save-minutes=0.001", "--timeout-minutes=1"
    )
    reached = wait_for_a_checkpoint(first, outdir, newer_than=40)
    for child in psutil.Process(second.pid).children(recursive=True):
        child.kill()
    second.kill()
    output_of(first)
    output_of(second)
    assert first.returncode != 0, "the machine that is left does not wait for ever"
    [saved, *_] = find_checkpoints(run_of(outdir))
    first, second = agents(
        data, outdir, "--kimg=1000", "--save-minutes=0.001", "--timeout-minutes=1"
    )
    wait_for_a_checkpoint(first, outdir, newer_than=saved.nimg)
    for agent in (first, second):  # as a scheduler does
        for child in psutil.Process(agent.pid).children():
            child.send_signal(signal.SIGUSR1)
    outputs = [output_of(first), output_of(second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert "Resuming the unfinished run" in outputs[0] and "Stopped by SIGUSR1" in outputs[0]
    assert "Run folder" not in outputs[1] and saved.nimg >= reached


def test_processes_must_share_the_batch(data, tmp_path):
    line = refused(f"--data={data}", f"--outdir={tmp_path}", *TINY, "--gpus=7", code=2)
    assert "--batch=40 cannot be split over --gpus=7" in line
