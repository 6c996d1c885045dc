import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import MetricError
from metrics.measures.inception_score import inception_score
from tests.golden_cases import GOLDEN_DIR


def test_golden():
    golden = np.load(GOLDEN_DIR / "metrics.npz")
    mean, std = inception_score(golden["probs"])
    assert mean == pytest.approx(float(golden["is_mean"]), rel=1e-9)
    assert std == pytest.approx(float(golden["is_std"]), rel=1e-7)


def test_uniform_predictions_score_1():
    assert inception_score(np.full((50, 7), 1 / 7)) == (pytest.approx(1), pytest.approx(0))


def test_one_hot_predictions_score_the_number_of_classes():
    rows = np.tile(np.eye(5), (20, 1))
    assert inception_score(rows) == (pytest.approx(5), pytest.approx(0))


def test_a_collapsed_generator_scores_1():
    assert inception_score(np.tile(np.eye(5)[2], (20, 1)))[0] == pytest.approx(1)


@given(st.integers(10, 60), st.integers(2, 9), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_from_1_to_the_number_of_classes_whatever_the_order_of_them(count, classes, seed):
    rng = np.random.RandomState(seed)
    rows = rng.dirichlet(np.full(classes, 0.3), count)
    mean, std = inception_score(rows)
    assert 1 - 1e-9 <= mean <= classes + 1e-9 and std >= 0
    assert inception_score(rows[:, rng.permutation(classes)])[0] == pytest.approx(mean)


def test_fewer_images_than_splits():
    with pytest.raises(MetricError, match="at least 10 images, not 9"):
        inception_score(np.full((9, 2), 0.5))
