"""Calls of calc_metrics.py."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import calc_metrics
from tests import make_data, tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    data = tiny.write_data(folder / "data.zip")
    return {
        "data": data,
        "detector": tiny.write_detector(folder / "tiny.pt"),
        "network": tiny.write_snapshot(folder / "snapshot.pkl", data),
    }


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty cache and folder, and logging as before."""
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers


def invoke(*args):
    return CliRunner().invoke(calc_metrics.main, [*map(str, args), "--device=cpu"])


def measured(*args):
    """The records that are printed, and the words beside them."""
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def refused(*args):
    result = invoke(*args)
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and not result.stdout
    return last


def test_a_snapshot_alone(files):
    [record], words = measured(
        f"--network={files['network']}", "--metrics=fid20_full", f"--detector={files['detector']}"
    )
    value = record["results"]["fid20_full@tiny"]
    assert value > 0 and f"fid20_full@tiny {value:.4f}" in words
    assert record["snapshot_pkl"] == files["network"] and record["num_gpus"] == 1
    assert list(Path.cwd().iterdir()) == []


def make_run(files, number, snapshots):
    folder = Path("training-runs", f"{number:05d}-run")
    folder.mkdir(parents=True)
    (folder / "training_options.json").write_text("{}")
    for kimg, age in snapshots:
        path = folder / f"network-snapshot-{kimg:06d}.pkl"
        path.write_bytes(Path(files["network"]).read_bytes())
        os.utime(path, (1e9 - age, 1e9 - age))
    return folder


def test_the_newest_snapshot_is_the_default_and_its_run_gets_the_result(files):
    make_run(files, 0, [(4, 30), (8, 20)])
    newest = make_run(files, 1, [(2, 10), (3, 15)])
    arguments = ("--metrics=fid20_full,is20", f"--detector={files['detector']}", "--verbose=0")
    for _ in range(2):
        records, words = measured(*arguments)
    network, few = words.splitlines()
    assert network == f"Network: {newest / 'network-snapshot-000002.pkl'}"
    assert few.startswith("fid20_full: 20 images are fewer than the 64 features")
    assert [record["snapshot_pkl"] for record in records] == ["network-snapshot-000002.pkl"] * 2
    lines = (newest / "metric-fid20_full@tiny.jsonl").read_text().splitlines()
    values = [json.loads(line)["results"]["fid20_full@tiny"] for line in lines]
    assert len(values) == 2 and values[0] == values[1]
    assert (newest / "metric-is20@tiny.jsonl").exists()


def test_a_run_folder_stands_for_its_newest_snapshot(files):
    folder = make_run(files, 3, [(4, 20), (8, 30)])
    [record], words = measured(
        f"--network={folder}", "--metrics=is20", f"--detector={files['detector']}"
    )
    assert record["snapshot_pkl"] == "network-snapshot-000004.pkl" and str(folder) in words


def test_two_sides_of_files(files, tmp_path):
    images = make_data.pixels(30, 16, 3, seed=1)
    folder = make_data.write_folder(
        tmp_path / "fakes", {f"{i}.png": make_data.encode(image) for i, image in enumerate(images)}
    )
    [record], words = measured(
        f"--real={files['data']}",
        f"--fake={folder}",
        "--metrics=fid50k_full",
        f"--detector={files['detector']}",
    )
    assert list(record["results"]) == ["fid30_full@tiny"]
    assert "Warning: the real images are 8x8, the others 16x16" in words


def test_two_sides_of_features(tmp_path):
    rows = np.random.RandomState(0).randn(50, 3)
    np.savez(tmp_path / "a.npz", features=rows)
    np.savez(tmp_path / "b.npz", features=rows + 1)
    [record], _ = measured(f"--real={tmp_path / 'a.npz'}", f"--fake={tmp_path / 'b.npz'}")
    assert record["results"] == {"fid50_full@features": pytest.approx(3, rel=1e-5)}
    assert record["detector"]["name"] == "features"


def test_the_seed_and_the_noise_change_the_images(files):
    arguments = (
        f"--network={files['network']}",
        "--metrics=fid20_full",
        f"--detector={files['detector']}",
    )
    values = []
    for changes in ([], ["--seed=1"], ["--noise-mode=none"], ["--batch=3", "--cache=0"]):
        [record], _ = measured(*arguments, *changes)
        values.append(record["results"]["fid20_full@tiny"])
    assert values[0] != values[1] and values[3] == pytest.approx(values[0], rel=1e-4)
    assert record["seed"] == 0 and record["noise_mode"] == "random"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no snapshot below training-runs/: give --network, or images by --fake"),
        (["--network=a.pkl", "--fake=b"], "Give --network or --fake, not both"),
        (["--network=."], "no network-snapshot-*.pkl in --network=.; for images give --fake"),
        (["--fake=.", "--data=.", "--real=."], "Give --data or --real, not both"),
        (["--fake=no.zip"], "--fake=no.zip does not exist"),
        (["--metrics=fid50k_ful"], "no metric is called 'fid50k_ful'"),
        (["--metrics=none"], "--metrics names none"),
        (["--seed=-1"], "--seed must be from 0 to 4293, not -1"),
        (["--seed=4294"], "--seed must be from 0 to 4293, not 4294"),
        (["--batch=0"], "--batch"),
        (["--memory=0"], "--memory"),
        (["--gpus=0"], "--gpus"),
        (["--network=no.pkl"], "Cannot read --network=no.pkl: No such file"),
    ],
)
def test_usage(options, message):
    assert message in refused(*options)


def test_device_names(files):
    result = CliRunner().invoke(calc_metrics.main, ["--network=a.pkl", "--device=cuda:99"])
    assert result.exit_code == 2 and "--device=cuda:99 is not there" in result.stderr


def test_offline_one_line_says_what_to_do(files, monkeypatch):
    import requests

    def get(*args, **kwargs):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", get)
    message = refused(f"--network={files['network']}")
    assert "inception-2015-12-05.pt" in message and os.environ["DNNLIB_CACHE_DIR"] in message


def test_a_result_that_cannot_be_saved_is_still_printed(files):
    folder = make_run(files, 0, [(4, 0)])
    (folder / "metric-is20@tiny.jsonl").mkdir()
    [record], words = measured("--metrics=is20", f"--detector={files['detector']}")
    assert "Warning: the result was not saved" in words and record["results"]
