import numpy as np
import pytest

from metrics import MetricError, registry
from metrics.evaluation import Evaluation, Settings
from metrics.feature_sources import SavedFeatureSource
from metrics.registry import find_metric, format_count, metric_names, parse_metrics, register
from metrics.sources import FeatureFile

OFFICIAL = {
    "fid50k_full",
    "fid50k",
    "kid50k_full",
    "kid50k",
    "pr50k3_full",
    "pr50k3",
    "is50k",
    "ppl2_wend",
    "ppl_zfull",
    "ppl_wfull",
    "ppl_zend",
    "ppl_wend",
}


def test_all_official_names():
    assert set(metric_names()) >= OFFICIAL
    for name in metric_names():
        metric = find_metric(name)
        assert metric.name == name and metric.num_generated == 50_000
        assert metric.full == name.endswith("_full")


@pytest.mark.parametrize(
    ("name", "num_real"),
    [
        ("fid50k_full", None),
        ("fid50k", 50_000),
        ("kid50k_full", 1_000_000),
        ("kid50k", 50_000),
        ("pr50k3_full", 200_000),
        ("pr50k3", 50_000),
        ("is50k", 0),
        ("ppl2_wend", 0),
    ],
)
def test_numbers_of_real_images(name, num_real):
    assert find_metric(name).num_real == num_real


@pytest.mark.parametrize(
    ("name", "base", "count"),
    [
        ("fid2k_full", "fid50k_full", 2000),
        ("fid1797_full", "fid50k_full", 1797),
        ("kid7", "kid50k", 7),
        ("pr2000_k3_full", "pr50k3_full", 2000),
        ("is1k", "is50k", 1000),
        ("ppl2_wend10k", "ppl2_wend", 10_000),
        ("dc2k5_full", "dc50k5_full", 2000),
        ("pr1797_k3", "pr50k3", 1797),
    ],
)
def test_other_numbers_of_images(name, base, count):
    found = find_metric(name)
    assert found.num_generated == count and found.compute is find_metric(base).compute
    assert find_metric(found.name) == found


def test_the_same_number_in_other_words_is_the_standard_metric():
    assert find_metric("fid50000_full").name == "fid50k_full"


@pytest.mark.parametrize(
    "name",
    [
        "fid",
        "fid0k",
        "fid-5k",
        "fid50k_ful",
        "ppl2",
        "FID50k",
        "fid50kk",
        "",
        "fid50k_full_x",
        "pr17973",
        "fid２k",
    ],
)
def test_unknown_names(name):
    with pytest.raises(MetricError, match="no metric is called .*fid50k_full, .*such as fid10k"):
        find_metric(name)


def test_too_many_images():
    with pytest.raises(MetricError, match="more than 1000000 images"):
        find_metric("fid1001k")


def test_lists():
    assert parse_metrics("none") == [] == parse_metrics("")
    names = [metric.name for metric in parse_metrics("fid50k, is50k,fid50k")]
    assert names == ["fid50k", "is50k"]
    with pytest.raises(MetricError):
        parse_metrics("fid50k,none")


def test_format_count():
    assert [format_count(n) for n in (0, 7, 1000, 1797, 50_000)] == ["0", "7", "1k", "1797", "50k"]


@pytest.fixture
def toy(monkeypatch):
    """A metric as a user adds it: one function under one decorator."""
    monkeypatch.setattr(registry, "_metrics", dict(registry._metrics))
    metric_names()

    @register("toy{n}", detector="inception", num_real=100, better={"": "higher"})
    def toy_metric(real, generated, settings):
        shift = generated.moments.mean - real.moments.mean
        return {"": float(shift[0]), "counts": [real.count, generated.count]}

    return "toy5"


def test_one_function_and_one_decorator_add_a_metric(toy, tmp_path):
    for name, start, count in (("real", 0.0, 150), ("fake", 3.0, 9)):
        np.savez(tmp_path / f"{name}.npz", features=np.full([count, 2], start))
    real, fake = (SavedFeatureSource(FeatureFile(tmp_path / f"{n}.npz")) for n in ("real", "fake"))
    [result] = Evaluation(real, Settings()).measure([find_metric(toy)], fake)
    assert result.values == {"toy5@features": 3.0, "toy5_counts@features": [100, 5]}
    assert result.better == {"toy5@features": "higher"}
    with pytest.raises(ValueError, match="two metrics are called toy50k"):
        register("toy{n}", detector="inception")(print)
