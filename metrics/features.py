"""From a producer of feature vectors to what metrics are computed from."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metrics import MetricError
from metrics.moments import Moments, MomentsAccumulator
from torch_utils import distributed

FeatureFn = Callable[..., np.ndarray]
"""A detector and one of its outputs: f(images [n, C, H, W], start=index of the first) returns
vectors float32 [n, D]."""


class Producer(Protocol):
    """Makes feature vectors of each index, some kinds at once; the same ones in any batch."""

    def prepare(self, start: int, stop: int) -> None:
        """Hint that these will be asked for next."""
        ...

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """Vectors float32 [stop - start, D] of every kind.

        Raises:
            MetricError: One cannot be made; its index is named.
        """
        ...


@dataclass(frozen=True)
class Collected:
    """Statistics of `count` feature vectors; what was not asked for is None."""

    count: int
    moments: Moments | None = None
    rows: np.ndarray | None = None
    """[count, D], float32 where a detector made them."""

    @property
    def width(self) -> int:
        """Length D of a feature vector."""
        return len(self.moments.mean) if self.moments is not None else self.require_rows().shape[1]

    def require_moments(self) -> Moments:
        """The moments, for a metric that declares the statistic "moments"."""
        if self.moments is None:
            raise ValueError(
                "no moments were collected: a metric has to declare that it needs some"
            )
        return self.moments

    def require_rows(self) -> np.ndarray:
        """The vectors [count, D], for a metric that declares the statistic "rows"."""
        if self.rows is None:
            raise ValueError("no rows were collected: a metric has to declare that it needs them")
        return self.rows


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
    """Make vectors, in every process, and keep statistics of them.

    Batch j always holds the same indices and is made by process j modulo their number; the first
    process takes them in order. One and many processes therefore see the same numbers, to the bit
    where the device computes them so.

    Args:
        producer: Makes the vectors.
        count: How many of every kind: indices 0 to count - 1.
        wanted: "moments", "rows" or both, for every kind that the producer makes.
        batch: Vectors made at once.
        progress: Wraps a sequence of steps, with a title, in a progress bar.
        title: Of the progress bar.

    Returns:
        Statistics of every kind; None except on rank 0.
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
    """Check that there is neither NaN nor infinity.

    Args:
        rows: [n, ...], floating-point.
        start: Index of the first item.
        what: Names an item, such as "image".

    Raises:
        MetricError: There is; the first item that holds it is named.
    """
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not finite.all():
        index = start + int(np.flatnonzero(~finite)[0])
        raise MetricError(f"{what} {index} is not finite (NaN or infinity)")
