import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import MetricError
from metrics.measures.precision_recall import block_shape, density_coverage, precision_recall
from metrics.registry import ComputeSettings
from tests.golden_cases import GOLDEN_DIR

SMALL = ComputeSettings(memory_bytes=4 * 200)  # blocks of a few pairs


def random_rows(count, dim=4, seed=0):
    return np.random.RandomState(seed).randn(count, dim).astype(np.float32)


@pytest.mark.parametrize("settings", [ComputeSettings(), ComputeSettings(memory_bytes=1 << 16)])
def test_golden(settings):
    golden = np.load(GOLDEN_DIR / "metrics.npz")
    precision, recall = precision_recall(golden["real"], golden["gen"], 3, settings)
    assert precision == pytest.approx(float(golden["precision"]), rel=1e-9)
    assert recall == pytest.approx(float(golden["recall"]), rel=1e-9)


def test_equal_and_disjoint_sets():
    rows = random_rows(60)
    assert precision_recall(rows, rows) == (1, 1)
    assert precision_recall(rows, rows + 1000) == (0, 0)
    assert density_coverage(rows, rows + 1000) == (0, 0)
    density, coverage = density_coverage(rows, rows)
    assert coverage == 1 and density > 0.8


def test_half_of_the_generated_points_are_far_off():
    rows = random_rows(60)
    mixed = np.concatenate([rows, rows + 1000])
    assert precision_recall(rows, mixed) == (0.5, 1)


def test_a_generator_that_makes_one_of_two_modes():
    near, far = random_rows(40, seed=0), random_rows(40, seed=1) + 1000
    precision, recall = precision_recall(np.concatenate([near, far]), near)
    assert (precision, recall) == (1, 0.5)
    assert density_coverage(np.concatenate([near, far]), near)[1] == 0.5


def definition(real, generated, k):
    """Precision, recall, density, coverage, point by point in float64."""
    real, generated = (x.astype(np.float16).astype(np.float64) for x in (real, generated))

    def distances(a, b):
        return np.sqrt(np.square(a[:, None] - b[None]).sum(axis=-1))

    def radii(points):
        return np.sort(distances(points, points), axis=1)[:, k]

    across = distances(generated, real)
    inside = across <= radii(real)
    precision = inside.any(axis=1).mean()
    recall = (across.T <= radii(generated)).any(axis=1).mean()
    coverage = (across.min(axis=0) <= radii(real)).mean()
    return precision, recall, inside.sum(axis=1).mean() / k, coverage


@given(st.integers(4, 25), st.integers(4, 25), st.integers(1, 3), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_definition_and_blocks_of_any_size(num_real, num_generated, k, seed):
    rng = np.random.RandomState(seed)
    # Whole numbers are exact in every format: ties and repeated points count alike everywhere.
    real = rng.randint(-4, 5, [num_real, 3]).astype(np.float32)
    generated = rng.randint(-3, 6, [num_generated, 3]).astype(np.float32)
    expected = definition(real, generated, k)
    for setting in (ComputeSettings(), SMALL):
        found = precision_recall(real, generated, k, setting)
        assert found == pytest.approx(expected[:2])
        assert density_coverage(real, generated, k, setting) == pytest.approx(expected[2:])


def test_the_order_of_points_does_not_matter():
    real, generated = random_rows(50, seed=0), random_rows(70, seed=1)
    shuffled = np.random.RandomState(2).permutation(generated)
    assert precision_recall(real, generated) == precision_recall(real, shuffled)
    assert density_coverage(real, generated) == density_coverage(real, shuffled)


@pytest.mark.parametrize("memory", [1, 1000, 1 << 20, 1 << 30])
@pytest.mark.parametrize("shape", [(200_000, 50_000, 4096), (10, 10, 4), (1, 1, 1)])
def test_blocks_stay_within_the_memory(memory, shape):
    num_rows, num_columns, dim = shape
    rows, columns = block_shape(num_rows, num_columns, dim, memory)
    assert 1 <= rows <= num_rows and 1 <= columns <= num_columns
    assert 4 * (3 * rows * columns + (rows + columns) * dim) <= max(memory, 4 * (3 + 2 * dim))


@pytest.mark.slow
def test_memory_that_is_really_used():
    import torch

    real, generated = random_rows(3000, 8), random_rows(3000, 8, seed=1)
    with torch.profiler.profile(profile_memory=True) as profile:
        precision_recall(real, generated, 3, ComputeSettings(memory_bytes=1 << 20))
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 1 << 20, "all pairs at once would be 36 MB"


def test_progress_moves():
    seen = []

    def progress(steps, title):
        seen.append((title, len(steps)))
        return steps

    precision_recall(random_rows(50), random_rows(60), 3, ComputeSettings(800, progress=progress))
    assert [title for title, _ in seen] == [
        "radii of real",
        "generated points",
        "radii of generated",
        "real points",
    ]
    assert all(count > 5 for _, count in seen)


def test_too_few_images():
    with pytest.raises(MetricError, match="at least 4 images on either side, not 3"):
        precision_recall(random_rows(3), random_rows(60))
    with pytest.raises(MetricError, match="at least 6 images"):
        density_coverage(random_rows(5), random_rows(60))


def test_features_that_float16_cannot_hold():
    with pytest.raises(MetricError, match="too large for float16"):
        precision_recall(random_rows(30) * 1e5, random_rows(30))
