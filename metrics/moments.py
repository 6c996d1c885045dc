"""Mean and covariance of a stream of feature vectors, in float64."""

from dataclasses import dataclass

import numpy as np

_BLOCK_ROWS = 512  # accumulation goes by blocks of this size, whatever comes in at once


@dataclass(frozen=True)
class Moments:
    """Mean float64 [D] and covariance float64 [D, D], with divisor N, of `count` vectors."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray


class MomentsAccumulator:
    """Takes rows [n, D] in order; the result does not depend on how they are portioned.

    Works on deviations from the running mean (Chan, Golub, LeVeque 1983), so that features far
    from zero lose no digits.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros([0, 0])  # sum of the outer products of deviations
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    def add(self, rows: np.ndarray) -> None:
        """Add rows [n, D] of any real dtype."""
        if len(rows) == 0:
            return
        self._waiting.append(np.array(rows, np.float64))  # a copy: the caller may go on using it
        self._num_waiting += len(rows)
        if self._num_waiting >= _BLOCK_ROWS:
            self._take_blocks()

    def _take_blocks(self) -> None:
        rows = np.concatenate(self._waiting)
        whole = len(rows) - len(rows) % _BLOCK_ROWS
        for start in range(0, whole, _BLOCK_ROWS):
            self._absorb(rows[start : start + _BLOCK_ROWS])
        self._waiting, self._num_waiting = [rows[whole:]], len(rows) - whole

    def _absorb(self, block: np.ndarray) -> None:
        n, mean = len(block), block.mean(axis=0)
        deviations = block - mean
        scatter = deviations.T @ deviations
        if self._count == 0:
            self._count, self._mean, self._scatter = n, mean, scatter
            return
        total = self._count + n
        step = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(step, step * (self._count * n / total))
        self._mean = self._mean + step * (n / total)
        self._count = total

    def finish(self) -> Moments:
        """The moments of all rows.

        Raises:
            ValueError: There were none.
        """
        if self._num_waiting:
            self._take_blocks()
            [rest] = self._waiting
            self._waiting, self._num_waiting = [], 0
            if len(rest):
                self._absorb(rest)
        if self._count == 0:
            raise ValueError("no feature vectors were added")
        return Moments(self._count, self._mean, self._scatter / self._count)


def moments_of(rows: np.ndarray) -> Moments:
    """Moments of all rows [N, D] at once."""
    accumulator = MomentsAccumulator()
    for start in range(0, len(rows), _BLOCK_ROWS):
        accumulator.add(rows[start : start + _BLOCK_ROWS])
    return accumulator.finish()
