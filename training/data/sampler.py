"""The endless stream of indices into a data set: a pure function of seed and position."""

from collections.abc import Iterator

import numpy as np
import torch


class InfiniteSampler(torch.utils.data.Sampler[int]):
    """Endless indices: one permutation of the data set after the other.

    The stream is a pure function of (seed, position), so a resumed run continues exactly where it
    stopped.

    Args:
        dataset_size: Images of the data set.
        rank: Of this replica, which gets every `num_replicas`-th index from its own on.
        num_replicas: Processes that share the stream.
        shuffle: Whether to permute; else the order is that of the data set.
        seed: Of the permutations.
        start: Position to begin at: the number of images already drawn by all replicas together.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        dataset_size: int,
        rank: int = 0,
        num_replicas: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        start: int = 0,
    ) -> None:
        super().__init__()
        if dataset_size < 1 or not 0 <= rank < num_replicas or seed < 0 or start < 0:
            raise ValueError(
                "InfiniteSampler needs dataset_size >= 1, 0 <= rank < num_replicas, seed >= 0, "
                f"start >= 0; got {dataset_size}, {rank}, {num_replicas}, {seed}, {start}."
            )
        self._size = dataset_size
        self._first = start + rank
        self._stride = num_replicas
        self._shuffle = shuffle
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        position = self._first
        current = position // self._size
        order = self._order(current)
        while True:
            epoch, offset = divmod(position, self._size)
            if epoch != current:
                current, order = epoch, self._order(epoch)
            yield int(order[offset])
            position += self._stride

    def _order(self, epoch: int) -> np.ndarray:
        """The permutation of one epoch.

        Sorting raw draws uses only what NumPy promises never to change, unlike
        Generator.permutation; a run resumed under another NumPy sees the same stream.
        """
        if not self._shuffle:
            return np.arange(self._size)
        source = np.random.PCG64(np.random.SeedSequence((self._seed, epoch)))
        return np.argsort(source.random_raw(self._size), kind="stable")
