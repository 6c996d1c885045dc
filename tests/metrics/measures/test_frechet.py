import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.features import Collected
from metrics.measures.frechet import fid, frechet_distance, trace_of_root
from metrics.moments import Moments, moments_of
from metrics.registry import ComputeSettings
from tests.golden_cases import GOLDEN_DIR


def gaussian(mean, covariance):
    return Moments(100, np.asarray(mean, float), np.asarray(covariance, float))


def random_covariance(dim, seed, condition=100.0):
    rng = np.random.RandomState(seed)
    q, _ = np.linalg.qr(rng.randn(dim, dim))
    return (q * np.geomspace(1, condition, dim)) @ q.T


def rotation(dim, seed):
    return np.linalg.qr(np.random.RandomState(seed).randn(dim, dim))[0]


def test_golden():
    golden = np.load(GOLDEN_DIR / "metrics.npz")
    both = [Collected(len(rows), moments_of(rows)) for rows in (golden["real"], golden["gen"])]
    assert fid(*both, ComputeSettings())[""] == pytest.approx(float(golden["fid"]), rel=1e-6)


def test_one_dimension():
    a, b = gaussian([1.0], [[4.0]]), gaussian([-2.0], [[9.0]])
    assert frechet_distance(a, b) == pytest.approx(9 + (2 - 3) ** 2)


@pytest.mark.parametrize("turn", [None, 0, 1])
def test_closed_form_of_commuting_gaussians_also_after_rotation(turn):
    u, v = np.array([1.0, 4.0, 9.0, 0.0]), np.array([16.0, 1.0, 0.25, 2.0])
    shift = np.array([1.0, -2.0, 0.0, 3.0])
    q = np.eye(4) if turn is None else rotation(4, turn)
    a = gaussian(np.zeros(4), q * u @ q.T)
    b = gaussian(q @ shift, q * v @ q.T)
    expected = 14 + np.square(np.sqrt(u) - np.sqrt(v)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("dim", [2, 17, 64])
def test_trace_agrees_with_the_matrix_square_root(dim):
    a, b = random_covariance(dim, seed=0), random_covariance(dim, seed=1)
    expected = np.trace(scipy.linalg.sqrtm(a @ b)).real
    assert trace_of_root(a, b) == pytest.approx(expected, rel=1e-6)


def test_finite_where_the_matrix_square_root_fails():
    direction = np.zeros((3, 1))
    direction[0] = 1
    nilpotent = [np.diag([1.0, 0.0, 0.0]), np.zeros((3, 3))]
    assert trace_of_root(*nilpotent) == 0
    rows = np.random.RandomState(0).randn(20, 200)  # N < dimensions: both covariances are singular
    a, b = moments_of(rows[:10] * 1e8), moments_of(rows[10:] * 1e8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scipy, about a singular matrix
        theirs = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    assert np.iscomplexobj(theirs) or not np.isfinite(theirs).all()
    assert np.isfinite(frechet_distance(a, b)) and frechet_distance(a, b) > 0


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_set_has_distance_0_from_itself_and_positive_from_a_shifted_one(count, dim, seed):
    rows = np.random.RandomState(seed).randn(count, dim)
    a, b = moments_of(rows), moments_of(rows + 2)
    scale = np.trace(a.covariance) + 1
    assert frechet_distance(a, a) <= 1e-6 * scale
    assert frechet_distance(a, b) == pytest.approx(4 * dim, abs=1e-6 * scale)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-6 * scale)


def test_one_image_each():
    a, b = moments_of(np.array([[1.0, 2.0]])), moments_of(np.array([[4.0, 6.0]]))
    assert frechet_distance(a, b) == pytest.approx(25)


def test_a_set_that_is_another_order_of_the_same():
    rows = np.random.RandomState(0).randn(50, 5)
    shuffled = np.random.RandomState(1).permutation(rows)
    assert frechet_distance(moments_of(rows), moments_of(shuffled)) == pytest.approx(0, abs=1e-12)
