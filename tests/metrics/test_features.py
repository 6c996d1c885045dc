import numpy as np
import pytest

from metrics import MetricError
from metrics.features import collect, require_finite
from torch_utils import distributed


class Counting:
    """Row i is a function of i; remembers which batches were asked for."""

    def __init__(self):
        self.asked, self.prepared = [], []

    def prepare(self, start, stop):
        self.prepared.append((start, stop))

    def rows(self, start, stop):
        self.asked.append((start, stop))
        index = np.arange(start, stop, dtype=np.float32)
        return [np.stack([np.sin(index), index], axis=1), index[:, None]]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_every_index_once_in_order(batch):
    producer = Counting()
    found, other = collect(producer, 10, [{"rows", "moments"}, {"rows"}], batch=batch)
    assert found.count == 10 and found.rows[:, 1].tolist() == list(range(10))
    assert found.moments.mean[1] == pytest.approx(4.5)
    assert other.rows[:, 0].tolist() == list(range(10)) and other.moments is None
    assert set(producer.prepared) <= set(producer.asked)


def test_the_batch_does_not_change_the_moments():
    covariances = [collect(Counting(), 999, [{"moments"}], batch=b)[0].moments for b in (7, 64)]
    assert np.array_equal(covariances[0].covariance, covariances[1].covariance)


def test_only_what_is_wanted_is_kept():
    assert collect(Counting(), 5, [{"moments"}])[0].rows is None
    assert collect(Counting(), 5, [{"rows"}])[0].moments is None


def test_batches_are_dealt_out_in_turn(monkeypatch):
    sent = {0: [], 1: []}
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    for rank in (0, 1):
        producer = Counting()
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "gather", lambda made, to=sent[rank]: to.append(made))
        found = collect(producer, 10, [{"rows"}], batch=4)
        assert (found is None) == (rank > 0)
        expected = {0: [(0, 4), (8, 10)], 1: [(4, 8)]}
        assert producer.asked == expected[rank]
    assert [[len(rows) for rows in kinds] for kinds in sent[1]] == [[4, 4], []]


def test_the_progress_bar_moves_once_a_batch():
    steps_seen = []

    def progress(steps, title):
        steps_seen.append((title, len(steps)))
        return steps

    collect(Counting(), 10, [{"rows"}], batch=3, progress=progress, title="real images")
    assert steps_seen == [("real images", 4)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named_by_its_index(bad):
    rows = np.zeros([5, 2, 2], np.float32)
    require_finite(rows, 100, "image")
    rows[3, 1, 0] = bad
    with pytest.raises(MetricError, match=r"^image 103 is not finite"):
        require_finite(rows, 100, "image")
