import dataclasses
import json

import numpy as np
import pytest
import torch

from dnnlib.util import cache_path, cache_root
from metrics import MetricError, detectors, evaluation, generated
from metrics.detector import Detector
from metrics.detectors import STANDARD_URLS
from metrics.evaluation import Evaluation, Settings
from metrics.feature_sources import comparison_warnings, open_files
from metrics.job import Job, run_job
from metrics.registry import find_metric
from metrics.repeatable import repeatable
from tests import make_data, tiny
from torch_utils.spawn import WorkerError, run_processes
from training.run.snapshot_file import SnapshotError

ALL = (
    "fid20_full",
    "fid20",
    "kid20_full",
    "is20",
    "pr20_k3_full",
    "dc20_k5_full",
    "classes20_full",
    "ppl2_wend8",
    "ppl_zfull8",
    "ppl_wfull8",
    "ppl_zend8",
    "ppl_wend8",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data set, a detector and a conditional snapshot."""
    folder = tmp_path_factory.mktemp("files")
    data = tiny.write_data(folder / "data.zip")
    return {
        "data": data,
        "detector": tiny.write_detector(folder / "tiny.pt"),
        "network": tiny.write_snapshot(folder / "snapshot.pkl", data, c_dim=3),
        "folder": folder,
    }


def job(files, *metrics, **changes):
    settings = Settings(detector=files["detector"], **changes.pop("settings", {}))
    network = None if "fake" in changes else files["network"]
    chosen = dict(metrics=metrics, network=network, settings=settings)
    return Job(**(chosen | changes))


def values(results):
    return {name: value for result in results for name, value in result.values.items()}


def test_all_metrics_of_a_snapshot(files):
    results = run_job(job(files, *ALL))
    assert [result.metric for result in results] == [f"{name}@tiny" for name in ALL]
    found = values(results)
    assert {"pr20_k3_full_precision@tiny", "is20_mean@tiny", "dc20_k5_full_coverage@tiny"} <= set(
        found
    )
    numbers = [value for value in found.values() if not isinstance(value, list)]
    assert np.isfinite(numbers).all()
    assert sum(found["classes20_full_histogram@tiny"]) == 20
    assert {result.num_real for result in results} == {0, 20}
    assert all(len(result.detector["sha256"]) == 64 for result in results)


def test_a_measurement_repeats_with_the_cache_without_it_and_in_other_batches(files):
    names = ("fid20_full", "kid20_full", "ppl_zfull8")
    first = values(run_job(job(files, *names)))
    assert values(run_job(job(files, *names))) == first
    uncached = job(files, *names, settings={"cache": False})
    assert values(run_job(uncached)) == first
    other = values(run_job(job(files, *names, settings={"batch": 5})))
    assert other == pytest.approx(first, rel=1e-4)
    assert values(run_job(job(files, *names, settings={"seed": 1}))) != first


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_several_processes_find_what_one_finds(files, one_thread):
    names = ("fid150_full", "fid150", "kid150_full", "pr150_k3_full", "is150", "ppl2_wend70")
    asked = job(files, *names, settings={"cache": False})
    alone = run_job(asked)
    for count in (2, 3):
        together = run_processes(run_job, count, asked)
        assert values(together) == values(alone)
        assert {result.processes for result in together} == {count}


@pytest.mark.slow
def test_an_image_that_cannot_be_read_ends_both_processes(files, tmp_path):
    images = [make_data.encode(image) for image in make_data.pixels(80, 8)]
    images[70] = images[70][:60]  # in the second batch: of the second process
    named = {f"{index:02d}.png": data for index, data in enumerate(images)}
    broken = make_data.write_zip(tmp_path / "broken.zip", named)
    with pytest.raises(WorkerError, match="^image 70 .'70.png' in .* cannot be read"):
        run_processes(run_job, 2, job(files, "fid50k_full", fake=broken, real=files["data"]))


def count_calls(monkeypatch):
    calls = []
    plain = Detector.__call__

    def counting(self, images, output, start=0, batch=64):
        calls.append(len(images))
        return plain(self, images, output, start, batch)

    monkeypatch.setattr(Detector, "__call__", counting)
    return calls


def test_metrics_share_what_they_need(files, monkeypatch):
    calls = count_calls(monkeypatch)
    run_job(job(files, "fid20_full", "kid20_full"))
    assert sum(calls) == 40
    run_job(job(files, "fid20_full", "kid20_full"))
    assert sum(calls) == 60, "statistics of the real images come from the cache"


def test_images_are_made_once_whatever_is_looked_at(files, monkeypatch):
    made, plain = [], generated.GeneratedFeatures._group

    def counting(self, first):
        made.append(first)
        return plain(self, first)

    monkeypatch.setattr(generated.GeneratedFeatures, "_group", counting)
    names = ("fid20_full", "is20", "pr20_k3_full")
    together = run_job(job(files, *names))
    assert made == [0, 4, 8, 12, 16]
    alone = [run_job(job(files, name))[0] for name in names]
    assert values(together) == values(alone)


def test_the_cache_follows_data_detector_and_what_is_used(files, monkeypatch, tmp_path):
    calls = count_calls(monkeypatch)

    def looked_at(**changes):
        calls.clear()
        run_job(job(files, "fid20", **changes))
        return sum(calls) - 20

    assert looked_at() == 20 and looked_at() == 0
    assert looked_at(mirror=True) == 40
    other = tiny.write_data(tmp_path / "other.zip", count=25)
    assert looked_at(data=other) == 25
    detector = tiny.write_detector(tmp_path / "tiny.pt", seed=1)
    with monkeypatch.context() as patch:
        patch.setitem(files, "detector", detector)
        assert looked_at() == 20
    assert looked_at() == 0


def test_a_corrupt_cache_is_rebuilt(files, caplog):
    first = values(run_job(job(files, "fid20_full")))
    [path] = (cache_root() / "dataset-statistics").iterdir()
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert values(run_job(job(files, "fid20_full"))) == first
    assert "are damaged" in caplog.text
    assert values(run_job(job(files, "fid20_full"))) == first


def test_full_ignores_subset_and_mirroring(files, tmp_path):
    view = dict(max_size=6, xflip=True, random_seed=0)
    network = tiny.write_snapshot(tmp_path / "s.pkl", files["data"], **view)
    full, part = run_job(job(files, "fid20_full", "fid20", network=network))
    assert (full.num_real, part.num_real) == (20, 12)
    [changed] = run_job(job(files, "fid20", network=network, mirror=False))
    assert changed.num_real == 6


def test_files_on_both_sides(files, tmp_path):
    other = make_data.write_zip(
        tmp_path / "b.zip", make_data.archive_files(make_data.pixels(12, 8, 1, seed=5))
    )
    same = job(files, "fid50k_full", "pr50k3_full", fake=files["data"], real=files["data"])
    assert values(run_job(same)) == {
        "fid20_full@tiny": pytest.approx(0, abs=1e-9),
        "pr20_k3_full_precision@tiny": 1,
        "pr20_k3_full_recall@tiny": 1,
    }
    [result] = run_job(job(files, "fid50k_full", fake=other, real=files["data"]))
    assert result.metric == "fid12_full@tiny", "named by the images that there were"
    assert result.values["fid12_full@tiny"] > 0


def test_one_image(files, tmp_path):
    one = make_data.write_zip(
        tmp_path / "one.zip", make_data.archive_files(make_data.pixels(1, 8, 1))
    )
    [result] = run_job(job(files, "fid50k_full", fake=one, real=files["data"]))
    assert result.metric == "fid1_full@tiny" and result.values["fid1_full@tiny"] > 0
    with pytest.raises(MetricError, match="at least 4 images"):
        run_job(job(files, "pr50k3_full", fake=one, real=files["data"]))


def save_features(path, rows):
    with open(path, "wb") as file:  # under exactly that name
        np.savez(file, features=rows)
    return str(path)


def test_saved_features_need_no_detector(tmp_path):
    rows = np.random.RandomState(0).randn(60, 4)
    real = save_features(tmp_path / "real.npz", rows)
    fake = save_features(tmp_path / "fake.npz", rows + [3, 0, 0, 0])
    asked = Job(metrics=("fid50k_full", "kid50k_full"), fake=fake, real=real)
    results = run_job(asked)
    assert values(results)["fid60_full@features"] == pytest.approx(9, rel=1e-5)
    assert results[0].detector["name"] == "features"


def test_saved_features_against_images(files, tmp_path):
    rows = np.random.RandomState(0).rand(30, 64)
    saved = save_features(tmp_path / "saved.NPZ", rows)
    narrow = save_features(tmp_path / "narrow.npz", rows[:, :5])
    [result] = run_job(job(files, "fid20_full", real=saved))
    assert result.metric == "fid20_full@features" and result.detector["sha256"].startswith("file:")
    with pytest.raises(MetricError, match="different lengths"):
        run_job(job(files, "fid20_full", real=narrow))


def test_features_are_no_probabilities(tmp_path):
    rows = save_features(tmp_path / "rows.npz", np.random.RandomState(0).randn(60, 4))
    with pytest.raises(MetricError, match="needs probabilities"):
        run_job(Job(("is50k",), fake=rows))
    rows = save_features(tmp_path / "rows.npz", np.eye(4)[np.arange(60) % 4])
    [result] = run_job(Job(("is50k",), fake=rows))
    assert result.values["is60_mean@features"] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("metric", "changes", "message"),
    [
        ("ppl2_wend8", dict(fake="data", real="data"), "path lengths need a snapshot"),
        ("fid20_full", dict(fake="data"), "needs real images: give them by --data or --real"),
        ("fid20_full", dict(data="nowhere"), "'nowhere' does not exist"),
    ],
)
def test_what_cannot_be_measured(files, metric, changes, message):
    changes = {key: files.get(value, value) for key, value in changes.items()}
    with pytest.raises(MetricError, match=message):
        run_job(job(files, metric, **changes))


@pytest.mark.parametrize(
    ("network", "message"),
    [("detector", "Cannot use --network="), ("nowhere", "Cannot read --network=.*No such file")],
)
def test_networks_that_cannot_be_used(files, network, message):
    with pytest.raises(SnapshotError, match=message):
        run_job(job(files, "fid20_full", network=files.get(network, network)))


def test_a_data_set_that_has_moved(files, tmp_path):
    for c_dim, message in ((0, "is not here: say by --data where"), (3, "and labels are")):
        network = tiny.write_snapshot(tmp_path / "s.pkl", "moved.zip", c_dim=c_dim)
        with pytest.raises(MetricError, match=f"moved.zip.*{message}"):
            run_job(job(files, "fid20_full", network=network))
        moved = job(files, "fid20_full", network=network, data=files["data"])
        assert run_job(moved)[0].num_real == 20
    with pytest.raises(MetricError, match="is not here"):
        run_job(job(files, "is20", network=network))


def test_real_images_of_ones_own_beside_the_data_set(files, tmp_path):
    view = dict(max_size=6, xflip=True)
    network = tiny.write_snapshot(tmp_path / "s.pkl", files["data"], c_dim=3, **view)
    other = tiny.write_data(tmp_path / "other.zip", count=9)
    full, part = run_job(job(files, "fid20_full", "fid20", network=network, real=other))
    assert (full.num_real, part.num_real) == (9, 18), "mirrored, and no subset of other images"


def test_no_network_is_used_before_sources_are_found_wanting(files, monkeypatch):
    monkeypatch.setattr(evaluation, "load_detector", pytest.fail)
    with pytest.raises(MetricError, match="path lengths need a snapshot"):
        run_job(job(files, "ppl2_wend", fake=files["data"]))


def test_only_the_standard_detector_gives_bare_names(files, monkeypatch):
    monkeypatch.setattr(detectors, "_STANDARD_WIDTHS", {"inception": {}, "vgg16": {}})
    path = cache_path(STANDARD_URLS["inception"])
    path.parent.mkdir(parents=True)
    with open(files["detector"], "rb") as file:
        path.write_bytes(file.read())
    standard = dataclasses.replace(job(files, "fid20_full"), settings=Settings())
    [result] = run_job(standard)
    assert result.metric == "fid20_full" and result.detector["name"] == "inception"
    assert result.detector["source"] == STANDARD_URLS["inception"]


def test_measuring_leaves_random_states_and_switches_alone(files):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = True, True, True
        states = torch.get_rng_state(), np.random.get_state()[1]
        run_job(job(files, "fid20_full"))
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert matmul.allow_tf32 and cudnn.allow_tf32 and cudnn.benchmark
        with repeatable("cpu"):
            assert not (matmul.allow_tf32 or cudnn.allow_tf32 or cudnn.benchmark)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def source(path, size=8, resize_filter=None):
    files = make_data.archive_files(make_data.pixels(3, size))
    if resize_filter is not None:
        original = {"width": [9, 9], "height": [9, 9]}
        meta = {"resize_filter": resize_filter, "original_size": original}
        files["dataset.json"] = json.dumps({"labels": None, "meta": meta}).encode()
    return open_files(make_data.write_zip(path, files))


def test_warnings_about_differences_that_are_not_of_the_generator(tmp_path):
    box, lanczos = (source(tmp_path / n, resize_filter=n) for n in ("box", "lanczos"))
    plain, large = source(tmp_path / "plain"), source(tmp_path / "large", 16)
    assert comparison_warnings(box, box) == [] == comparison_warnings(box, plain)
    assert comparison_warnings(None, box) == []
    [text] = comparison_warnings(box, lanczos)
    assert "filter 'box', the others by 'lanczos'" in text
    [text] = comparison_warnings(plain, large)
    assert "8x8, the others 16x16" in text


def test_one_evaluation_measures_several_networks(files):
    settings = Settings(detector=files["detector"])
    evaluated = Evaluation(open_files(files["data"]), settings)
    other = open_files(files["data"])
    for _ in range(2):
        [result] = evaluated.measure([find_metric("fid20_full")], other)
        assert result.values == {"fid20_full@tiny": pytest.approx(0, abs=1e-9)}
    [result] = evaluated.measure([find_metric("kid20_full")], other)
    assert abs(result.values["kid20_full@tiny"]) < 1, "which needs more than the mean of features"


def test_what_is_not_needed_may_be_damaged(files, tmp_path):
    (tmp_path / "damaged.zip").write_bytes(b"no zip")
    network = tiny.write_snapshot(tmp_path / "s.pkl", tmp_path / "damaged.zip", max_size=5)
    run_job(job(files, "is20", network=network))
    for other in (dict(real=files["data"]), dict(data=files["data"])):
        [result] = run_job(job(files, "fid20", network=network, **other))
        assert result.num_real == 20, "the subset was of the snapshot's data set"


@pytest.mark.parametrize("kwargs", [dict(max_size="7"), dict(xflip=2)])
def test_a_snapshot_with_settings_of_a_wrong_type(files, tmp_path, kwargs):
    network = tiny.write_snapshot(tmp_path / "s.pkl", files["data"], **kwargs)
    [(name, value)] = kwargs.items()
    with pytest.raises(MetricError, match=f"its training_set_kwargs have {name}={value!r}, not"):
        run_job(job(files, "fid20", network=network))


def test_mirror_holds_for_real_images_of_ones_own(files):
    names = ("fid20_full", "fid20")
    asked = job(files, *names, fake=files["data"], real=files["data"], mirror=True)
    assert [result.num_real for result in run_job(asked)] == [20, 40]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA out of memory.")]
)
def test_too_little_memory_for_the_generator(files, monkeypatch, error):
    def fail(self, first):
        raise error

    monkeypatch.setattr(generated.GeneratedFeatures, "_group", fail)
    with pytest.raises(MetricError, match="^not enough memory on cpu: end what else uses it"):
        run_job(job(files, "is20"))
