import math

import numpy as np
import pytest
import torch

from torch_utils.training_stats import TrainingStats


def test_moments_over_several_reports():
    stats = TrainingStats()
    values = np.random.RandomState(0).randn(7, 3).astype(np.float32)
    for row in values:
        stats.report("a", torch.from_numpy(row))
    stats.report("b", 5)
    collected = stats.collect()
    assert list(collected) == ["a", "b"]
    assert collected["a"]["num"] == 21
    assert collected["a"]["mean"] == pytest.approx(values.mean(), rel=1e-6)
    assert collected["a"]["std"] == pytest.approx(values.std(), rel=1e-6)
    assert collected["b"] == {"num": 1, "mean": 5.0, "std": 0.0}


def test_collect_starts_afresh():
    stats = TrainingStats()
    stats.report("a", 1.0)
    stats.collect()
    assert stats.collect() == {}
    stats.report("a", 3.0)
    assert stats.collect()["a"]["mean"] == 3.0


def test_numbers_keep_double_precision():
    stats = TrainingStats()
    stats.report("time", 1795318590.0277607)
    assert stats.mean("time") == 1795318590.0277607


def test_mean_leaves_the_statistics_alone():
    stats = TrainingStats()
    stats.report("a", torch.tensor([1.0, 2.0]))
    assert stats.mean("a") == 1.5
    assert stats.mean("a") == 1.5
    assert math.isnan(stats.mean("nothing"))
    assert list(stats.collect()) == ["a"]


def test_constants_have_no_deviation():
    stats = TrainingStats()
    for _ in range(1000):
        stats.report("a", torch.full([3], 0.1))
    assert stats.collect()["a"]["std"] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_extreme_values_are_reported_as_they_are(value):
    stats = TrainingStats()
    stats.report("a", value)
    entry = stats.collect()["a"]
    assert entry["mean"] == pytest.approx(value, nan_ok=True)
    assert math.isnan(entry["std"]), "no deviation can be told"


def test_empty_reports():
    stats = TrainingStats()
    stats.report("a", torch.zeros([0]))
    entry = stats.collect()["a"]
    assert entry["num"] == 0 and math.isnan(entry["mean"])


def test_no_graph_is_kept():
    stats = TrainingStats()
    x = torch.ones([2], requires_grad=True)
    stats.report("a", x * 2)
    stats.report("a", x * 2)
    assert stats.mean("a") == 2
