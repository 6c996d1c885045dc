import numpy as np
import pytest

from metrics.features import Collected
from metrics.measures.class_histogram import class_histogram, classes, divergence
from metrics.registry import ComputeSettings


def collected(labels, num_classes):
    rows = np.full((len(labels), num_classes), 0.1)
    rows[np.arange(len(labels)), labels] = 0.9
    return Collected(len(labels), rows=rows)


def test_counts_covered_classes():
    real = collected([0, 1, 2, 3] * 5, 4)
    found = classes(real, collected([1, 1, 3], 4), ComputeSettings())
    assert found["covered"] == 2 and found["histogram"] == [0, 2, 0, 1]
    assert found["kl"] > 0.5


def test_equal_frequencies_have_no_divergence():
    counts = class_histogram(collected([0, 0, 1, 2] * 100, 3).rows)
    assert divergence(counts, counts) == pytest.approx(0, abs=1e-4)


def test_a_class_that_the_data_lacks_costs_much_but_not_infinitely():
    assert 1 < divergence(np.array([0, 5]), np.array([100, 0])) < 10
