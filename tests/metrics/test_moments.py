import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.moments import MomentsAccumulator, moments_of


def accumulated(rows, sizes):
    accumulator, start = MomentsAccumulator(), 0
    for size in sizes:
        accumulator.add(rows[start : start + size])
        start += size
    accumulator.add(rows[start:])
    return accumulator.finish()


@given(st.lists(st.integers(0, 900), max_size=6), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_how_rows_are_portioned_does_not_change_a_bit(sizes, seed):
    rows = np.random.RandomState(seed).randn(1500, 3).astype(np.float32)
    whole, parts = moments_of(rows), accumulated(rows, sizes)
    assert np.array_equal(whole.mean, parts.mean)
    assert np.array_equal(whole.covariance, parts.covariance)


@pytest.mark.parametrize("count", [1, 2, 511, 512, 513, 2000])
def test_agrees_with_numpy(count):
    rows = np.random.RandomState(0).randn(count, 4)
    found = moments_of(rows)
    assert found.count == count
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), atol=1e-12)


def test_features_far_from_zero_lose_no_digits():
    rows = np.random.RandomState(0).randn(3000, 2)
    far = moments_of(rows + 1e7)
    np.testing.assert_allclose(far.covariance, np.cov(rows.T, bias=True), rtol=1e-6, atol=1e-6)


def test_no_rows():
    with pytest.raises(ValueError, match="no feature vectors"):
        MomentsAccumulator().finish()


def test_the_caller_may_reuse_its_array():
    rows = np.ones((3, 2))
    accumulator = MomentsAccumulator()
    accumulator.add(rows)
    rows[:] = 7
    assert accumulator.finish().mean.tolist() == [1, 1]
