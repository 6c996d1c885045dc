"""From a producer of feature vectors to what metrics are computed from."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metrics import MetricError
from metrics.moments import Moments, MomentsAccumulator
from torch_utils import distributed

__all__ = ["Collected", "FeatureFn", "Producer", "collect", "require_finite"]

FeatureFn = Callable[..., np.ndarray]
"""f(images, start=index of the first) -> vectors [n, D]: a detector and one of its outputs."""


class Producer(Protocol):
    """Makes feature vectors of each index, some kinds at once; the same ones in any batch."""

    def prepare(self, start: int, stop: int) -> None:
        """Hint that these will be asked for next."""

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """Vectors [stop - start, D], float32, of every kind.

        Raises MetricError naming an index that is bad.
        """


@dataclass(frozen=True)
class Collected:
    """Statistics of `count` feature vectors; what was not asked for is None."""

    count: int
    moments: Moments | None = None
    rows: np.ndarray | None = None


class _Collector:
    """Takes vectors of one kind in order and keeps the statistics that are wanted."""

    def __init__(self, wanted: Set[str], count: int) -> None:
        self._count, self._taken = count, 0
        self._moments = MomentsAccumulator() if "moments" in wanted else None
        self._keep = "rows" in wanted
        self._rows: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        if self._moments is not None:
            self._moments.add(rows)
        if self._keep:
            if self._rows is None:
                self._rows = np.empty([self._count, rows.shape[1]], rows.dtype)
            self._rows[self._taken : self._taken + len(rows)] = rows
            self._taken += len(rows)

    def finish(self) -> Collected:
        moments = None if self._moments is None else self._moments.finish()
        return Collected(self._count, moments, self._rows)


def collect(
    producer: Producer,
    count: int,
    wanted: Sequence[Set[str]],
    *,
    batch: int = 64,
    progress: Callable[[Iterable, str], Iterable] = lambda steps, title: steps,
    title: str = "features",
) -> list[Collected] | None:
    """Statistics of the vectors 0 to count - 1 of every kind; None but on the first process.

    wanted: for every kind that the producer makes, "moments", "rows" or both. Batch j always holds
    the same indices and is made by process j modulo their number; the first process takes them in
    order. One and many processes therefore see the same numbers, to the bit where the device
    computes them so.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    collectors = [_Collector(statistics, count) for statistics in wanted]
    starts = range(rank * batch, count, world_size * batch)
    rounds = range(0, count, world_size * batch)
    for number, _ in enumerate(progress(rounds, title)):
        made: list[np.ndarray] = []
        if number < len(starts):
            made = producer.rows(starts[number], min(starts[number] + batch, count))
        if number + 1 < len(starts):
            producer.prepare(starts[number + 1], min(starts[number + 1] + batch, count))
        for kinds in distributed.gather(made) or []:
            # A process without a batch in the last round sends nothing.
            for collector, rows in zip(collectors, kinds, strict=False):
                collector.add(rows)
    return [c.finish() for c in collectors] if rank == 0 else None


def require_finite(rows: np.ndarray, start: int, what: str) -> None:
    """Raise MetricError with the index of the first item that holds NaN or infinity.

    rows: [n, ...]; start: index of the first; what: names an item, such as "image".
    """
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not finite.all():
        index = start + int(np.flatnonzero(~finite)[0])
        raise MetricError(f"{what} {index} is not finite (NaN or infinity)")
