"""Several processes: the same gradients, the same networks, and what happens when one is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch

import train
from tests import tiny
from tests.train_cli import SMALL, refused, ticks
from torch_utils.distributed import Processes, run_processes
from training.checkpoint import find_states, read_state
from training.consistency import ConsistencyError, check_consistency, checksums
from training.dataset import ImageFolderDataset
from training.stages import build_stages, run_phase
from training.state import create_state

ROOT = Path(train.__file__).parent
TINY = (*SMALL, "--batch=40", "--gamma=1", "--g-scale=0.001953125", "--d-scale=0.001953125")
CPU = torch.device("cpu")
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=40)


# One step of every phase, on the same micro-batches.


def micro_batches(config, dataset):
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return [
        dict(
            real_img=draw(4, 1, 8, 8).clamp(-1, 1), real_c=torch.zeros(4, 0),
            gen_z=draw(4, config.z_dim), gen_c=torch.zeros(4, 0),
        )
        for _ in range(2)
    ]  # fmt: skip


def gradients(processes, data):
    """Gradients {stage, phase, parameter: tensor}; each of two processes sees one micro-batch."""
    config = tiny.config(
        data=data, batch=8, gamma=1.0, pl_weight=2.0, style_mixing=0.0, coop_kimg=1, coop_steps=2,
        coop_noise=0.0, aug="noaug",
    )  # fmt: skip
    dataset = ImageFolderDataset(data)
    torch.manual_seed(0)
    state = create_state(config, dataset, CPU)
    batches = micro_batches(config, dataset)
    if processes.count > 1:
        batches = [batches[processes.rank]]
    torch.randn_like = ones_like_noise  # of path lengths
    found = {}
    for stage in build_stages(config, state, lambda name, value: None):
        for phase in stage.phases:
            phase.optimizer.step = lambda: None
            run_phase(stage, phase, batches, lambda name, value: None)
            for name, parameter in phase.net.named_parameters():
                if not name.endswith("noise_strength"):  # each process draws its own noise
                    found[f"{stage.name} {phase.name} {name}"] = parameter.grad.clone()
    return found


def ones_like_noise(x, **_):
    return torch.linspace(-1, 1, x.numel()).view(x.shape)


def test_two_processes_give_the_gradients_of_one(data, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.randn_like)  # to be put back
    alone = gradients(Processes(), data)
    together = run_processes(gradients, 2, data, timeout=MINUTE)
    assert {name.rpartition(" ")[0] for name in alone} == {
        "cooperative Gmain", "cooperative Dmain", "adversarial Gmain", "adversarial Greg",
        "adversarial Dmain", "adversarial Dreg",
    }  # fmt: skip
    for phase in {name.rpartition(" ")[0] for name in alone}:
        names = [name for name in alone if name.startswith(f"{phase} ")]
        scale = max(alone[name].abs().max() for name in names)
        assert scale > 0
        # A process alone moves the mean of path lengths, by 1 %, after each micro-batch.
        tolerance = 0.02 if phase == "adversarial Greg" else 1e-5
        for name in names:
            assert (together[name] - alone[name]).abs().max() <= tolerance * scale, name


# Networks that come apart


def come_apart(processes):
    G, D = tiny.networks()
    nets = {"G": G, "D": D}
    check_consistency(processes, nets)
    if processes.rank == 1:
        with torch.no_grad():
            D.b8.conv1.weight[0, 0, 0, 0] *= 1 + 1e-6
    try:
        check_consistency(processes, nets)
    except ConsistencyError as error:
        return str(error)


def test_networks_that_have_come_apart_are_named():
    message = run_processes(come_apart, 2, timeout=MINUTE)
    assert "D.b8.conv1.weight of process 1 is not that of process 0" in message


def test_checksums_see_every_bit_and_its_place():
    layer = torch.nn.Linear(4, 1)
    before = checksums({"x": layer})
    with torch.no_grad():
        layer.weight.copy_(layer.weight.flip(1))
    assert checksums({"x": layer})["x.weight"] != before["x.weight"]
    assert checksums({"x": layer})["x.bias"] == before["x.bias"]


# Whole runs


def command(data, outdir, *options):
    return [sys.executable, "train.py", f"--data={data}", f"--outdir={outdir}", *TINY, *options]


def start(args, **env):
    return subprocess.Popen(
        args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )  # fmt: skip


def output_of(process, seconds=120):
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it hangs: {process.communicate()[0][-2000:]}")


def run_of(outdir):
    [run_dir] = outdir.iterdir()
    return run_dir


def wait_for_a_state(process, outdir, newer_than=-1):
    while process.poll() is None:
        states = [s for folder in outdir.glob("0*") for s in find_states(folder)]
        if states and max(states).nimg > newer_than:
            return max(states).nimg
        time.sleep(0.05)
    pytest.fail(f"it ended: {process.communicate()[0][-2000:]}")


def trainers(process):
    """The processes that train, by rank: in the order in which they were started."""
    children = psutil.Process(process.pid).children()
    return [c for c in children if "spawn_main" in " ".join(c.cmdline())]


def test_spawned_processes_and_another_count_on_resume(data, tmp_path):
    outdir = tmp_path / "runs"
    output = output_of(start(command(data, outdir, "--gpus=2", "--coop-kimg=1", "--kimg=2")))
    run_dir = run_of(outdir)
    assert output.count("Run folder: ") == 1 and f"Done. Open {run_dir}" in output
    assert [tick["Progress/kimg"]["mean"] for tick in ticks(run_dir)] == [0.04, 1.0, 2.0]
    assert ticks(run_dir)[0]["Loss/scores/real"]["num"] == 40, "what both have seen"
    state = read_state(find_states(run_dir)[0].path)
    assert state["parts"]["data"]["position"] == 2000 and len(state["random"]) == 2
    again = start([
        sys.executable, "train.py", f"--resume={run_dir}", "--gpus=1", "--kimg=3",
    ])  # fmt: skip
    output = output_of(again)
    assert "gpus: 2 -> 1" in output and "Done." in output
    assert [tick["Progress/kimg"]["mean"] for tick in ticks(run_dir)][-1] == 3.0


def test_a_process_that_dies_ends_all(data, tmp_path):
    outdir = tmp_path / "runs"
    process = start(command(data, outdir, "--gpus=2", "--kimg=1000", "--save-minutes=0.001"))
    wait_for_a_state(process, outdir, newer_than=40)
    trainers(process)[1].kill()
    output = output_of(process)
    assert process.returncode == 1
    assert "Error: process 1 was killed by signal 9" in output
    assert read_state(find_states(run_of(outdir))[-1].path)


def test_a_process_that_hangs_ends_all(data, tmp_path):
    outdir = tmp_path / "runs"
    process = start(
        command(data, outdir, "--gpus=2", "--kimg=1000", "--timeout-minutes=0.05")
    )  # fmt: skip
    wait_for_a_state(process, outdir)
    stopped = trainers(process)[1]
    stopped.suspend()
    output = output_of(process)
    assert process.returncode == 1
    assert "Error: a process has kept the others waiting" in output
    assert not stopped.is_running()


def test_a_signal_stops_all_of_them_at_one_iteration(data, tmp_path):
    outdir = tmp_path / "runs"
    process = start(command(data, outdir, "--gpus=2", "--kimg=1000"))
    wait_for_a_state(process, outdir)
    process.send_signal(signal.SIGINT)
    output = output_of(process)
    assert process.returncode == 0, output
    assert "is saved. The same command goes on from there." in output


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def agents(data, outdir, *options):
    """Two torchrun agents of one process each, as on two machines."""
    port = free_port()
    return [
        start([
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes=2",
            "--nproc-per-node=1",
            f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}",
            *command(data, outdir, *options)[1:],
        ])
        for node in range(2)
    ]  # fmt: skip


def test_two_machines_one_of_which_is_lost_and_started_again(data, tmp_path):
    outdir = tmp_path / "runs"
    first, second = agents(
        data, outdir, "--kimg=1000", "--save-minutes=0.001", "--timeout-minutes=1"
    )
    reached = wait_for_a_state(first, outdir, newer_than=40)
    for child in psutil.Process(second.pid).children(recursive=True):
        child.kill()
    second.kill()
    output_of(first)
    output_of(second)
    assert first.returncode != 0, "the machine that is left does not wait for ever"
    [saved, *_] = find_states(run_of(outdir))
    first, second = agents(
        data, outdir, "--kimg=1000", "--save-minutes=0.001", "--timeout-minutes=1"
    )
    wait_for_a_state(first, outdir, newer_than=saved.nimg)
    for agent in (first, second):  # as a scheduler does
        for child in psutil.Process(agent.pid).children():
            child.send_signal(signal.SIGUSR1)
    outputs = [output_of(first), output_of(second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert "Going on with the unfinished run" in outputs[0] and "Stopped by SIGUSR1" in outputs[0]
    assert "Run folder" not in outputs[1] and saved.nimg >= reached


def test_processes_must_share_the_batch(data, tmp_path):
    line = refused(f"--data={data}", f"--outdir={tmp_path}", *TINY, "--gpus=7", code=2)
    assert "--batch=40 cannot be split over --gpus=7" in line
