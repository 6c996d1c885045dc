"""What a second family of networks costs: its own files and one line of the registry."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import generate
import train
from dnnlib import families
from tests import tiny
from tests.train_cli import logging_as_before, snapshot, ticks, without_curves
from training.run.checkpoint_file import find_checkpoints, read_checkpoint
from training.settings.config import config_from_json

ROOT = Path(train.__file__).parent
TOY = families.Family(
    settings="tests.models.toy:ToyConfig",
    model="tests.models.toy:build_toy",
    sampler="models.direct_sampler:DirectSampler",
    networks=("tests.models.toy",),
)
OPTIONS = (
    "--cfg=toy",
    "--cond=1",
    "--coop-kimg=1",
    "--kimg=2",
    "--coop-steps=2",
    "--workers=0",
    "--device=cpu",
    "--ops=ref",
    "--snap=1",
    "--save-minutes=0",
    "--width=12",
)
# A process that is killed, with the family in its registry, once so many images have been seen.
KILLED = """
import os, signal, sys
from dnnlib import families
families.FAMILIES["toy"] = families.Family(*sys.argv.pop(1).split(), networks=("tests.models.toy",))
import train
from training import training_loop
iterate, end = training_loop.iterate, int(sys.argv.pop(1))
def iterate_and_die(run):
    iterate(run)
    if run.nimg == end:
        run.checkpointer.finish()  # so that there is one to resume from
        os.kill(os.getpid(), signal.SIGKILL)
training_loop.iterate = iterate_and_die
train.main()
"""

pytestmark = without_curves


@pytest.fixture(autouse=True)
def family(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "toy", TOY)


@pytest.fixture
def data(tmp_path):
    return tiny.write_data(tmp_path / "tiny.zip", count=24)


def command():
    """train.py with the options of all families, of the toy, too."""
    from dnnlib.command import SectionedCommand
    from training.settings.options import option_sections

    return SectionedCommand(
        "train", sections=option_sections(train.OTHERS), callback=train.main.callback
    )


def trained(data, outdir):
    with logging_as_before():
        args = [*OPTIONS, f"--data={data}", f"--outdir={outdir}"]
        result = CliRunner().invoke(command(), args)
    assert result.exit_code == 0, result.output
    [run_dir] = outdir.iterdir()
    return run_dir, result.output


def killed(data, outdir, nimg):
    args = [*OPTIONS, f"--data={data}", f"--outdir={outdir}"]
    script = [sys.executable, "-c", KILLED, " ".join(TOY[:3]), str(nimg), *args]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr


def same(a, b):
    """Whether two nested dicts of tensors and values are equal, to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.slow
def test_a_family_trains_through_both_stages_is_killed_and_resumed_and_generates(data, tmp_path):
    whole, output = trained(data, tmp_path / "whole")
    assert "Cooperative stage from kimg 0.0" in output
    assert "Adversarial stage from kimg 1.0" in output
    assert whole.name == "00000-tiny-cond-toy-kimg2-coop1-coopsteps2"
    config = config_from_json((whole / "training_options.json").read_text())
    assert (config.family, config.width) == ("toy", 12)
    stages = [tick["Progress/cooperative"]["mean"] for tick in ticks(whole)]
    assert sorted(set(stages)) == [0, 1]
    assert all("Progress/diversity" in tick for tick in ticks(whole))

    for nimg in (496, 1504):  # in either stage
        killed(data, tmp_path / "killed", nimg)
    run_dir, output = trained(data, tmp_path / "killed")
    assert "Resuming the unfinished run" in output
    a, b = (read_checkpoint(find_checkpoints(d)[0].path)["parts"] for d in (whole, run_dir))
    for part in ("training", "data", "snapshots", "diagnostics"):
        assert same(a[part], b[part]), part

    network = run_dir / "network-snapshot-000002.pkl"
    G = snapshot(network)["G_ema"]
    assert type(G).__name__ == "ToyG" and G.init_kwargs == {}
    args = [f"--network={network}", "--seeds=3,4", "--class=1", f"--outdir={tmp_path / 'out'}"]
    result = CliRunner().invoke(generate.main, [*args, "--device=cpu", "--trunc=0.5"])
    assert result.exit_code == 0, result.output
    with PIL.Image.open(tmp_path / "out" / "seed0003.png") as picture:
        assert picture.size == (8, 8) and np.asarray(picture).std() > 0


def test_options_of_another_family_are_refused(data):
    args = [f"--data={data}", "--device=cpu", "--cfg=toy", "--gamma=1"]
    with logging_as_before():
        result = CliRunner().invoke(command(), args)
    line = result.output.splitlines()[-1]
    assert result.exit_code == 2 and "--gamma is an option of stylegan2 (--cfg=auto, " in line
    assert line.endswith("not of toy (--cfg=toy)")
