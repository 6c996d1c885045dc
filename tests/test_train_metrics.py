"""Metrics during training."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metrics import MetricError
from metrics.evaluation import Evaluation, Settings
from metrics.job import Job, run_job
from tests import tiny
from tests.speed import slow
from tests.train_cli import FEW_CHANNELS, SMALL, invoke, refused, snapshot, trained, without_curves
from training import training_loop
from training.run.checkpoint_file import read_newest_checkpoint

pytestmark = without_curves

COMMON = (
    "--kimg=2",
    "--coop-kimg=1",
    "--coop-steps=1",
    "--batch=100",
    "--gamma=0",
    "--snap=1",
    *FEW_CHANNELS,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {
        "data": tiny.write_data(folder / "tiny.zip", count=40),
        "detector": tiny.write_detector(folder / "own.pt"),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def first(files, tmp_path_factory):
    """A conditional run through both stages with metrics of every snapshot."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNLIB_CACHE_DIR", str(folder / "cache"))
        return trained(
            f"--data={files['data']}",
            f"--outdir={folder / 'runs'}",
            "--cond=1",
            *COMMON,
            f"--detector={files['detector']}",
            "--metrics=fid20_full,pr20_k3,classes20_full",
        )


def records(run_dir, name):
    lines = (run_dir / f"metric-{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_snapshot_is_measured(first):
    run_dir, output = first
    names = sorted(path.name for path in run_dir.glob("network-snapshot-*.pkl"))
    assert names == [f"network-snapshot-{kimg:06d}.pkl" for kimg in (0, 1, 2)]
    found = records(run_dir, "fid20_full@own")
    assert [record["snapshot_pkl"] for record in found] == names
    assert "network-snapshot-000002.pkl: fid20_full@own " in output
    assert "classes20_full_covered@own " in output and "histogram" not in output


def test_calc_metrics_finds_the_same_numbers(first, files):
    run_dir, _ = first
    last = records(run_dir, "fid20_full@own")[-1]
    settings = Settings(detector=files["detector"])
    job = Job(("fid20_full",), network=str(run_dir / last["snapshot_pkl"]), settings=settings)
    [result] = run_job(job)
    assert result.values["fid20_full@own"] == pytest.approx(
        last["results"]["fid20_full@own"], rel=1e-6
    )


@pytest.mark.parametrize(
    ("name", "value", "best"),
    [
        ("fid20_full@own", "fid20_full@own", min),
        ("pr20_k3@own", "pr20_k3_recall@own", max),
        ("classes20_full@own", "classes20_full_kl@own", min),
    ],
)
def test_the_best_snapshot_is_kept(first, name, value, best):
    run_dir, _ = first
    found = {r["snapshot_pkl"]: r["results"][value] for r in records(run_dir, name)}
    winner = next(s for s, number in found.items() if number == best(found.values()))
    kept = (run_dir / f"network-best-{value}.pkl").read_bytes()
    assert kept == (run_dir / winner).read_bytes()
    assert snapshot(run_dir / f"network-best-{value}.pkl")["G_ema"] is not None


def test_numbers_in_tensorboard_and_on_the_page(first):
    run_dir, _ = first
    events = EventAccumulator(str(run_dir)).Reload()
    scalars = events.Scalars("Metrics/fid20_full@own")
    found = [record["results"]["fid20_full@own"] for record in records(run_dir, "fid20_full@own")]
    assert [scalar.step for scalar in scalars] == [0, 1, 2]
    assert [scalar.value for scalar in scalars] == pytest.approx(found)
    page = (run_dir / "index.html").read_text()
    assert "<h2>Metrics</h2>" in page and f"<td>{found[-1]:.4g}</td>" in page
    assert "<th>pr20_k3_recall@own</th>" in page


@pytest.mark.slow
def test_a_run_that_stops_measures_when_it_goes_on(files, tmp_path, monkeypatch):
    iterate = training_loop.iterate

    def iterate_and_stop(run):
        iterate(run)
        if run.nimg == 1000:  # where the first stage ends, with a snapshot
            os.kill(os.getpid(), signal.SIGTERM)

    args = (*SMALL, f"--data={files['data']}", f"--outdir={tmp_path}", *COMMON)
    args += ("--metrics=fid20_full", f"--detector={files['detector']}")
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "iterate", iterate_and_stop)
        assert "the checkpoint of kimg 1.0 is saved" in invoke(*args).output
    [run_dir] = tmp_path.glob("0*")
    first, second, third = (f"network-snapshot-{kimg:06d}.pkl" for kimg in range(3))
    assert [r["snapshot_pkl"] for r in records(run_dir, "fid20_full@own")] == [first]
    assert read_newest_checkpoint(run_dir)[1]["parts"]["snapshots"]["pending_evaluation"] == second
    assert "Done." in invoke(*args).output
    measured = [r["snapshot_pkl"] for r in records(run_dir, "fid20_full@own")]
    assert measured == [first, second, third]


def weights(run_dir):
    return torch.cat([p.flatten() for p in snapshot(run_dir)["G_ema"].parameters()])


@pytest.mark.slow
def test_measuring_does_not_change_training(files, tmp_path):
    found = []
    for metrics in (["--metrics=none"], ["--metrics=is20", f"--detector={files['detector']}"]):
        run_dir, _ = trained(
            f"--data={files['data']}", f"--outdir={tmp_path}", "--kimg=1", "--snap=1", *metrics
        )
        found.append(weights(run_dir / "network-snapshot-000001.pkl"))
    assert torch.equal(*found)


@pytest.mark.slow
def test_keep(files, tmp_path):
    options = ("--kimg=9", "--coop-kimg=1", "--coop-steps=1", "--batch=500", "--gamma=0")
    run_dir, _ = trained(
        f"--data={files['data']}", f"--outdir={tmp_path}", "--snap=1", "--keep=1", *options
    )
    names = sorted(path.name for path in run_dir.glob("network-snapshot-*.pkl"))
    assert names == ["network-snapshot-000001.pkl", "network-snapshot-000009.pkl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MetricError("generated image 3 is not finite"), "generated image 3 is not finite"),
        slow((RuntimeError("eigenvalues failed"), "eigenvalues failed")),
        slow((torch.OutOfMemoryError("CUDA out of memory"), "not enough memory on cpu")),
    ],
)
def test_a_measurement_that_fails_does_not_end_training(
    files, tmp_path, monkeypatch, error, message
):
    def broken(*args):
        raise error

    monkeypatch.setattr(Evaluation, "_compute", broken)
    run_dir, output = trained(
        f"--data={files['data']}",
        f"--outdir={tmp_path}",
        "--kimg=1",
        "--metrics=is20",
        f"--detector={files['detector']}",
        *FEW_CHANNELS,
    )
    warning = f"No metrics of network-snapshot-000001.pkl: {message}"
    assert warning in output and warning in (run_dir / "log.txt").read_text()


# ---------------------------------------------------------------------------------------------
# Before training starts


@pytest.fixture
def offline(monkeypatch):
    import requests

    def get(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", get)


def settings_of(output):
    return json.loads(output.partition("Settings: ")[2].partition("Run: ")[0])


@pytest.mark.parametrize(
    ("options", "metrics"),
    [
        ([], "none"),
        (["--metrics=none"], "none"),
        (["--metrics=fid50k_full,is50k"], "fid50k_full,is50k"),
        (["--detector=own.pt"], "none"),
        (["--detector=own.pt", "--metrics=fid2k_full"], "fid2k_full"),
    ],
)
def test_which_metrics(files, options, metrics):
    result = invoke(f"--data={files['data']}", "-n", "--device=cpu", *options)
    assert result.exit_code == 0 and settings_of(result.output)["metrics"] == metrics
    assert ("Metrics are off" in result.output) == ("--metrics" not in "".join(options))


def test_metrics_that_were_asked_for_must_be_possible(files, tmp_path, offline):
    message = refused(
        f"--data={files['data']}",
        f"--outdir={tmp_path / 'runs'}",
        *SMALL,
        "--metrics=fid50k_full",
        code=1,
    )
    assert "inception-2015-12-05.pt" in message and "--metrics=none" in message
    assert not (tmp_path / "runs").exists()


def test_a_detector_must_have_what_the_metrics_need(files, tmp_path):
    torch_file = tmp_path / "text.pt"
    torch_file.write_text("hello")
    message = refused(
        f"--data={files['data']}",
        f"--outdir={tmp_path / 'runs'}",
        *SMALL,
        f"--detector={torch_file}",
        "--metrics=is20",
        code=1,
    )
    assert "no usable TorchScript file" in message and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_metrics_by_default_do_not_stand_in_the_way(files, tmp_path, offline, monkeypatch):
    import train

    monkeypatch.setattr(train, "metrics_by_default", lambda given: ("fid50k_full", []))
    run_dir, output = trained(f"--data={files['data']}", f"--outdir={tmp_path}")
    assert output.count("Metrics are off: cannot download https://") == 1
    assert json.loads((run_dir / "training_options.json").read_text())["metrics"] == "none"


@pytest.mark.slow
def test_metrics_that_are_impossible_once_stay_settings_of_the_run(
    files, tmp_path, offline, monkeypatch
):
    detector = tmp_path / "own.pt"
    shutil.copy(files["detector"], detector)
    run_dir, _ = trained(
        f"--data={files['data']}",
        f"--outdir={tmp_path / 'runs'}",
        "--metrics=is20",
        f"--detector={detector}",
    )
    detector.unlink()
    output = invoke(f"--resume={run_dir}", "--kimg=2").output
    assert "Metrics are off: " in output and "Done." in output
    shutil.copy(files["detector"], detector)
    assert "Done." in invoke(f"--resume={run_dir}", "--kimg=3").output
    measured = [r["snapshot_pkl"] for r in records(run_dir, "is20@own")]
    assert measured[-1] == "network-snapshot-000003.pkl" and len(measured) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics=fid"], "--metrics: no metric is called 'fid'"),
        (["--metrics=none", "--detector=a.pt"], "--detector needs --metrics; here they are none"),
        (["--keep=0"], "--keep must be at least 1, not 0"),
    ],
)
def test_usage(files, options, message):
    assert message in refused(f"--data={files['data']}", *SMALL, *options, code=2)


def test_values_are_finite_numbers(first):
    run_dir, _ = first
    for name in ("fid20_full@own", "pr20_k3@own"):
        for record in records(run_dir, name):
            assert np.isfinite(list(record["results"].values())).all()
