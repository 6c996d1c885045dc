"""Whole runs of train.py, what they leave, and its options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import generate
import train
from tests import tiny
from tests.train_cli import (
    FEW_CHANNELS,
    SMALL,
    invoke,
    refused,
    snapshot,
    ticks,
    trained,
    without_curves,
)
from training.settings.config import config_from_json
from training.settings.family_settings import preset_names

ROOT = Path(train.__file__).parent
FORK = "ignore::DeprecationWarning:multiprocessing.popen_fork"  # see tiny.starts_workers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=40)


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """A run through both stages; 1000 is no multiple of its batch."""
    outdir = tmp_path_factory.mktemp("first") / "runs"
    options = ("--kimg=2", "--coop-kimg=1", "--coop-steps=2", "--gamma=0", "--batch=96")
    options += FEW_CHANNELS
    return trained(f"--data={data}", f"--outdir={outdir}", *options)


def test_contents_of_the_run_folder(first):
    run_dir, output = first
    assert run_dir.name == (
        "00000-tiny-digits-gamma0-kimg2-batch96-coop1-gscale0.00195312-dscale0.00195312-coopsteps2"
    )
    [events] = run_dir.glob("events.out.tfevents.*")
    states = {path.name for path in run_dir.glob("checkpoint-*.pt")}
    assert {name[:27] for name in states} == {
        "checkpoint-000002-000001056",
        "checkpoint-000003-000002016",
    }
    assert {path.name for path in run_dir.iterdir()} == {
        "training_options.json",
        "log.txt",
        "stats.jsonl",
        events.name,
        "reals.png",
        "fakes_init.png",
        "fakes000000.png",
        "fakes000001.png",
        "fakes000002.png",
        "network-snapshot-000000.pkl",
        "network-snapshot-000001.pkl",
        "network-snapshot-000002.pkl",
        "learning-curves.png",
        "index.html",
        ".lock",
        *states,
    }
    assert output.strip().endswith(f"Done. Open {run_dir / 'index.html'}")
    assert "Metrics are off: fid50k_full would take hours on the CPU" in output


def test_recorded_options(first, data):
    config = config_from_json((first[0] / "training_options.json").read_text())
    assert (config.data, config.resolution, config.batch) == (data, 8, 96)
    assert (config.kimg, config.coop_kimg, config.coop_steps, config.gamma) == (2, 1, 2, 0)


def test_the_stages_switch_at_the_first_iteration_at_or_after_coop_kimg(first):
    run_dir, _ = first
    seen = [
        (tick["Progress/kimg"]["mean"], tick["Progress/cooperative"]["mean"])
        for tick in ticks(run_dir)
    ]
    assert seen == [(0.096, 1), (1.056, 1), (2.016, 0)], "11 x 96 is the first beyond 1000"
    log = (run_dir / "log.txt").read_text().splitlines()
    assert [line.split()[0] for line in log] == "Cooperative tick tick Adversarial tick".split()
    assert log[0] == "Cooperative stage from kimg 0.0"
    assert log[3] == "Adversarial stage from kimg 1.1"
    assert log[1].startswith("tick 0     kimg 0.1      time ")


@pytest.mark.slow
@without_curves
def test_the_switch_may_fall_on_coop_kimg_itself(data, tmp_path):
    run_dir, _ = trained(
        f"--data={data}",
        f"--outdir={tmp_path}",
        "--kimg=2",
        "--coop-kimg=1",
        "--coop-steps=1",
        "--batch=100",
        "--gamma=0",
    )
    stages = [tick["Progress/cooperative"]["mean"] for tick in ticks(run_dir)]
    assert [tick["Progress/kimg"]["mean"] for tick in ticks(run_dir)] == [0.1, 1.0, 2.0]
    assert stages == [1, 1, 0]


OFFICIAL_STATS = {
    "Loss/scores/real",
    "Loss/scores/fake",
    "Loss/signs/real",
    "Loss/signs/fake",
    "Loss/G/loss",
    "Loss/D/loss",
    "Progress/tick",
    "Progress/kimg",
    "Progress/augment",
    "Timing/total_sec",
    "Timing/sec_per_tick",
    "Timing/sec_per_kimg",
    "Timing/maintenance_sec",
    "Timing/Gmain",
    "Timing/Dmain",
    "Resources/cpu_mem_gb",
    "Resources/peak_gpu_mem_gb",
}
COOP_STATS = {
    "Coop/displacement",
    "Coop/energy_gap",
    "Coop/grad_norm/Gmain",
    "Coop/grad_norm/Dmain",
    "Coop/nonfinite/Gmain",
    "Coop/nonfinite/Dmain",
}


def test_names_of_the_statistics(first):
    run_dir, _ = first
    for tick in ticks(run_dir):
        assert tick.keys() >= OFFICIAL_STATS | {"timestamp"}
        coop = {name for name in tick if name.startswith("Coop/")}
        assert coop == (COOP_STATS if tick["Progress/cooperative"]["mean"] else set())
        assert not {"Timing/Dreg", "Loss/r1_penalty"} & tick.keys(), "--gamma=0 means no Dreg"
    assert ticks(run_dir)[1]["Loss/scores/real"]["num"] == 10 * 96
    scalars = EventAccumulator(str(run_dir)).Reload().Tags()["scalars"]
    assert set(scalars) >= OFFICIAL_STATS | COOP_STATS


def test_pictures(first):
    for name in ("reals", "fakes_init", "fakes000002"):
        with PIL.Image.open(first[0] / f"{name}.png") as picture:
            assert (picture.mode, picture.size) == ("L", (32 * 8, 32 * 8))


def test_snapshots_are_of_the_networks_as_they_were(first):
    old, new = (snapshot(first[0] / f"network-snapshot-00000{i}.pkl") for i in (1, 2))
    assert new["training_set_kwargs"]["resolution"] == 8 and new["augment_pipe"] is None
    for name in ("G", "D", "G_ema"):
        pairs = list(zip(old[name].parameters(), new[name].parameters(), strict=True))
        assert all(b.isfinite().all() for _, b in pairs)
        assert any((a != b).any() for a, b in pairs)


def test_generate_makes_images_from_a_snapshot(first, tmp_path):
    network = first[0] / "network-snapshot-000002.pkl"
    args = (f"--network={network}", "--seeds=0,3", f"--outdir={tmp_path}", "--device=cpu")
    result = CliRunner().invoke(generate.main, args)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed0000.png", "seed0003.png"]
    with PIL.Image.open(tmp_path / "seed0003.png") as picture:
        assert picture.size == (8, 8)


@pytest.mark.slow
@without_curves
def test_a_conditional_run_with_all_of_the_data_options(data, tmp_path):
    (tmp_path / "00007-earlier").mkdir()
    run_dir, _ = trained(
        f"--data={data}",
        f"--outdir={tmp_path}",
        "--cond=1",
        "--subset=30",
        "--mirror=1",
        "--batch=256",
        "--aug=noaug",
        "--freezed=1",
        "--snap=1",
        "--seed=5",
    )
    assert run_dir.name == ("00008-tiny-cond-subset30-mirror-digits-kimg1-batch256-noaug-freezed1")
    *_, last = ticks(run_dir)
    stats = set().union(*ticks(run_dir))
    assert {"Timing/Dreg", "Loss/r1_penalty", "Loss/D/reg"} <= stats
    assert not any(name.startswith("Coop/") for name in stats)
    assert last["Progress/kimg"]["mean"] == 1.024

    final = snapshot(run_dir / "network-snapshot-000001.pkl")
    assert (final["G"].c_dim, final["D"].c_dim) == (3, 3)
    kwargs = final["training_set_kwargs"]
    assert (kwargs["use_labels"], kwargs["max_size"], kwargs["xflip"]) == (True, 30, True)
    assert kwargs["random_seed"] == 5

    start = snapshot(run_dir / "network-snapshot-000000.pkl")
    frozen = {name for name, _ in final["D"].named_buffers()} & {"b8.fromrgb.weight"}
    assert frozen, "Freeze-D keeps the layer next to the image"
    assert torch.equal(final["D"].b8.fromrgb.weight, start["D"].b8.fromrgb.weight)
    assert not torch.equal(final["D"].b4.conv.weight, start["D"].b4.conv.weight)


@pytest.mark.slow
@without_curves
def test_resume_starts_from_the_weights_of_the_snapshot(first, data, tmp_path):
    network = first[0] / "network-snapshot-000002.pkl"
    run_dir, _ = trained(
        f"--data={data}",
        f"--outdir={tmp_path}",
        f"--resume={network}",
        "--batch=256",
        *FEW_CHANNELS,
    )
    assert run_dir.name == (
        "00000-tiny-digits-kimg1-batch256-resumecustom-gscale0.00195312-dscale0.00195312"
    )
    with (
        PIL.Image.open(run_dir / "fakes_init.png") as resumed,
        PIL.Image.open(first[0] / "fakes000002.png") as left,
    ):
        assert np.array_equal(np.array(resumed), np.array(left))


@pytest.mark.slow
def test_cooperative_throughout_and_as_a_program_of_its_own(data, tmp_path):
    command = [
        sys.executable,
        ROOT / "train.py",
        f"--data={data}",
        *SMALL,
        "--coop-kimg=5",
        "--coop-steps=1",
        "--batch=256",
        "--workers=1",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONWARNINGS": f"error,{FORK}"},
    )
    assert "training is cooperative throughout" in done.stdout
    assert "cooperative, kimg" in done.stderr or "%|" in done.stderr, "a progress bar"
    run_dir = tmp_path / "training-runs" / "00000-tiny-digits-kimg1-batch256-coop5-coopsteps1"
    assert {tick["Progress/cooperative"]["mean"] for tick in ticks(run_dir)} == {1}
    assert "1 kimg of cooperative initialisation." in (run_dir / "index.html").read_text()


# ---------------------------------------------------------------------------------------------
# Options


def test_every_official_option_is_accepted_and_a_dry_run_writes_nothing(data, tmp_path):
    outdir = tmp_path / "runs"
    result = invoke(
        f"--outdir={outdir}",
        "--gpus=1",
        "--snap=10",
        "--metrics=none",
        "--seed=1",
        "-n",
        f"--data={data}",
        "--cond=true",
        "--subset=8",
        "--mirror=1",
        "--cfg=auto",
        "--gamma=0.5",
        "--kimg=7",
        "--batch=16",
        "--aug=noaug",
        "--resume=noresume",
        "--freezed=0",
        "--fp32=1",
        "--nhwc=true",
        "--nobench=yes",
        "--allow-tf32=false",
        "--workers=2",
    )
    assert result.exit_code == 0, result.output
    assert "Run: tiny-cond-subset8-mirror-auto1-gamma0.5-kimg7-batch16-noaug-freezed0\n" in (
        result.output
    )
    assert result.output.endswith("Dry run: nothing was written.\n")
    assert not outdir.exists()
    for line in ('"snap": 10', '"nhwc": true', '"cudnn_benchmark": false', '"precision": "fp32"'):
        assert line in result.output


def test_options_of_the_cooperative_stage(data):
    result = invoke(
        f"--data={data}",
        "--dry-run",
        "--cfg=digits",
        "--coop-kimg=3",
        "--coop-steps=4",
        "--coop-step-size=0.5",
        "--coop-noise=0.5",
        "--coop-noise-schedule=constant",
        "--coop-step-clip=3",
        "--coop-clamp=2",
        "--coop-energy-l2=0.1",
        "--coop-lr-g=0.001",
        "--coop-lr-d=0.002",
    )
    assert result.exit_code == 0, result.output
    printed = result.output.partition("Settings: ")[2].partition("Run: ")[0]
    settings = json.loads(printed)
    assert {name: value for name, value in settings.items() if name.startswith("coop_")} == dict(
        coop_kimg=3,
        coop_steps=4,
        coop_step_size=0.5,
        coop_noise=0.5,
        coop_noise_schedule="constant",
        coop_step_clip=3.0,
        coop_clamp=2.0,
        coop_energy_l2=0.1,
        coop_lr_g=0.001,
        coop_lr_d=0.002,
    )


@pytest.mark.parametrize("cfg", preset_names())
def test_presets(data, cfg):
    result = invoke(f"--data={data}", "-n", f"--cfg={cfg}", "--resume=ffhq256")
    assert result.exit_code == 0, result.output
    part = "auto1" if cfg == "auto" else cfg
    assert f"Run: tiny-{part}-resumeffhq256\n" in result.output


def test_a_cooperative_stage_longer_than_the_run_is_announced(data):
    result = invoke(f"--data={data}", "-n", "--kimg=10", "--coop-kimg=11")
    assert result.exit_code == 0 and "training is cooperative throughout" in result.output
    result = invoke(f"--data={data}", "-n", "--kimg=10", "--coop-kimg=9")
    assert result.exit_code == 0 and "throughout" not in result.output


@pytest.mark.slow
@without_curves
def test_adaptive_augmentation_starts_after_the_cooperative_stage(data, tmp_path):
    run_dir, _ = trained(
        f"--data={data}",
        f"--outdir={tmp_path}",
        "--kimg=3",
        "--coop-kimg=1",
        "--coop-steps=1",
        "--batch=100",
        "--aug=ada",
        "--target=0",
        "--augpipe=blit",
        "--snap=1",
        *FEW_CHANNELS,
    )
    *coop, adversarial = (tick["Progress/augment"]["mean"] for tick in ticks(run_dir))
    assert coop == [0, 0]
    assert 0 <= adversarial <= 5 * 400 / 500_000  # five updates, each of 4 batches / 500 kimg
    pipe = snapshot(run_dir / "network-snapshot-000003.pkl")["augment_pipe"]
    assert (pipe.xflip, pipe.rotate90, pipe.scale) == (1, 1, 0)
    assert pipe.p.item() == pytest.approx(adversarial)


@pytest.mark.slow
@without_curves
def test_fixed_augmentation(data, tmp_path):
    run_dir, _ = trained(
        f"--data={data}",
        f"--outdir={tmp_path}",
        "--batch=200",
        "--aug=fixed",
        "--p=0.3",
        "--augpipe=color",
    )
    assert run_dir.name.endswith("-fixed-p0.3-color")
    assert [t["Progress/augment"]["mean"] for t in ticks(run_dir)] == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    ("options", "aug"),
    [
        (["--gamma=1"], "ada"),
        (["--gamma=0"], "noaug"),
        (["--loss=hinge"], "noaug"),
        (["--gamma=0", "--aug=ada"], "ada"),
    ],
)
def test_augmentation_is_adaptive_by_default_where_it_works(data, options, aug):
    result = invoke(f"--data={data}", "-n", *options)
    assert f'"aug": "{aug}"' in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--loss=wgan", "--aug=ada"], "no such meaning with --loss=wgan"),
        (["--aug=fixed"], "add --p"),
        (["--p=0.5"], "--p needs --aug=fixed"),
        (["--aug=fixed", "--p=1.5"], "--p must be from 0 to 1"),
        (["--target=2"], "--target must be from 0 to 1"),
    ],
)
def test_augmentation_options_that_contradict(data, options, says):
    assert says in refused(f"--data={data}", "-n", *options, code=2)
