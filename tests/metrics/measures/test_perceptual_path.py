import numpy as np
import pytest

from metrics.measures.perceptual_path import trimmed_mean


def test_extremes_are_left_out():
    values = np.ones(1000)
    values[:5], values[5:10] = 1e9, -1e9
    assert trimmed_mean(values) == 1


def test_the_percentiles_themselves_count():
    values = np.arange(101, dtype=float)
    assert trimmed_mean(values) == np.arange(1, 100).mean()


def test_one_value():
    assert trimmed_mean(np.array([3.5])) == pytest.approx(3.5)
