"""From a producer of feature vectors to what metrics are computed from."""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metrics import MetricError
from metrics.moments import Moments, MomentsAccumulator
from torch_utils.distributed import Processes

__all__ = ["Collected", "Producer", "collect", "require_finite"]


class Producer(Protocol):
    """Makes one feature vector for each index; the same one whatever else is asked for."""

    def prepare(self, start: int, stop: int) -> None:
        """Hint that these will be asked for next."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors [stop - start, D], float32. Raises MetricError naming an index that is bad."""


@dataclass(frozen=True)
class Collected:
    """Statistics of `count` feature vectors; what was not asked for is None."""

    count: int
    moments: Moments | None = None
    rows: np.ndarray | None = None


def collect(
    producer: Producer,
    count: int,
    wanted: Set[str],
    *,
    batch: int = 64,
    processes: Processes | None = None,
    progress: Callable[[Iterable, str], Iterable] = lambda steps, title: steps,
    title: str = "features",
) -> Collected | None:
    """Statistics `wanted` (moments, rows) of the vectors 0 to count - 1; None but on the first.

    Batch j always holds the same indices and is made by process j modulo their number; the first
    process takes them in order. One and many processes therefore see the same numbers, to the bit
    where the device computes them so.
    """
    processes = processes or Processes()
    moments = MomentsAccumulator() if "moments" in wanted else None
    kept: list[np.ndarray] = []
    starts = range(processes.rank * batch, count, processes.count * batch)
    rounds = range(0, count, processes.count * batch)
    for number, _ in enumerate(progress(rounds, title)):
        rows = None
        if number < len(starts):
            rows = producer.rows(starts[number], min(starts[number] + batch, count))
        if number + 1 < len(starts):
            producer.prepare(starts[number + 1], min(starts[number + 1] + batch, count))
        for part in processes.gather(rows) or []:
            if part is not None and moments is not None:
                moments.add(part)
            if part is not None and "rows" in wanted:
                kept.append(part)
    if not processes.first:
        return None
    return Collected(
        count,
        moments.finish() if moments is not None else None,
        np.concatenate(kept) if "rows" in wanted else None,
    )


def require_finite(rows: np.ndarray, start: int, what: str) -> None:
    """Raise MetricError with the index of the first item that holds NaN or infinity.

    rows: [n, ...]; start: index of the first; what: names an item, such as "image".
    """
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not finite.all():
        index = start + int(np.flatnonzero(~finite)[0])
        raise MetricError(f"{what} {index} is not finite (NaN or infinity)")
