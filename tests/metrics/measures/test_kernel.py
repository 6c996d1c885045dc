import numpy as np
import pytest

from metrics import MetricError
from metrics.features import Collected
from metrics.measures.kernel import kid, squared_mmd
from metrics.registry import ComputeSettings
from tests.golden_cases import GOLDEN_DIR


def collected(rows):
    return Collected(len(rows), rows=rows)


def random_rows(count, dim, seed):
    return np.random.RandomState(seed).randn(count, dim).astype(np.float32)


def test_golden():
    golden = np.load(GOLDEN_DIR / "metrics.npz")
    m = int(golden["kid_m"])
    value = squared_mmd(golden["gen"][:m], golden["real"][:m])
    assert value == pytest.approx(float(golden["kid_full_subset"]), rel=1e-5)  # measured in float32


def test_definition_pair_by_pair():
    x, y = random_rows(5, 3, 0), random_rows(5, 3, 1)

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5)]
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j) / 20
    across = sum(kernel(x[i], y[j]) for i, j in pairs) / 25
    assert squared_mmd(x, y) == pytest.approx(within - 2 * across, rel=1e-5)


def test_unbiased_for_equal_distributions():
    values = [squared_mmd(random_rows(50, 4, s), random_rows(50, 4, 1000 + s)) for s in range(300)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error and np.min(values) < 0


def test_repeats_and_tells_sets_apart():
    a, b, far = (collected(random_rows(150, 4, s)) for s in (0, 1, 2))
    far.rows[:] += 1
    settings = ComputeSettings()
    assert kid(a, b, settings) == kid(a, b, settings)
    assert kid(a, far, settings)[""] > 5 > abs(kid(a, b, settings)[""])


def test_the_order_of_small_sets_does_not_matter():
    x, y = random_rows(40, 4, 0), random_rows(40, 4, 1)
    shuffled = np.random.RandomState(2).permutation(x)
    values = [kid(collected(y), collected(rows), ComputeSettings())[""] for rows in (x, shuffled)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_every_subset_moves_the_progress_bar():
    seen = []

    def progress(steps, title):
        for step in steps:
            seen.append(title)
            yield step

    kid(
        collected(random_rows(9, 2, 0)),
        collected(random_rows(9, 2, 1)),
        ComputeSettings(progress=progress),
    )
    assert seen == ["kernel distance"] * 100


def test_one_image():
    with pytest.raises(MetricError, match="at least two images"):
        kid(collected(random_rows(9, 2, 0)), collected(random_rows(1, 2, 0)), ComputeSettings())
