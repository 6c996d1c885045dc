"""Batches of real images, on the training device."""

import contextlib
import logging
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from torch_utils import distributed
from torch_utils.image_values import normalize
from training.data.damaged_images import DamageCount, LabelledImages, UndamagedImages
from training.data.image_files import DatasetError
from training.data.sampler import InfiniteSampler
from training.settings.config import TrainingConfig

FORKS = sys.platform == "linux"
RESTARTS = 3  # of workers, without a batch in between
# What PyTorch says of a worker that is gone, or that finds no shared memory for a batch. Any other
# error inside of a worker has its traceback before it.
_SHORT = re.compile(
    r"\ADataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)"
    r"|\APin memory thread exited unexpectedly"
    r"|\nRuntimeError: unable to [^\n<]*</?torch_[^\n]*\s*\Z"
)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def few_cores_are_fine() -> Iterator[None]:
    """Torch warns where there are more workers than cores; the default of three does no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def _of_workers(error: Exception) -> bool:
    """Whether workers have died, or could not be started; their own errors are "Caught ..."."""
    if isinstance(error, OSError | EOFError):  # of the connection to one
        return not str(error).startswith("Caught ")
    return isinstance(error, RuntimeError) and _SHORT.search(str(error)) is not None


def ignore_signals(_worker: int | None = None) -> None:
    """For data-loader workers, which share the terminal and the job: the trainer ends them."""
    for number in distributed.SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Fatal(str):
    """Why there is no next batch."""


class TrainingImages(LabelledImages, Protocol):
    """What is asked of a data set to train on: an `ImageFolderDataset`."""

    label_dim: int

    @property
    def has_onehot_labels(self) -> bool:
        """Whether labels are in use and are classes."""
        ...

    @property
    def raw_labels(self) -> np.ndarray:
        """All labels at once: class numbers, int64 [N], or vectors, float32 [N, label_dim]."""
        ...


class RealImages:
    """Endless iterator over batches of real images; a context manager that ends its workers.

    Yields (images [N, C, H, W] float32 in [-1, 1], labels [N, c_dim] float32), N the batch of this
    process. The order is a function of the seed and of the number of images that earlier batches
    have drawn, so that a stream is resumed where it was left. Instead of a damaged image
    stands the next whole one; DatasetError is raised when more than 1 % are damaged. Workers that
    die are started again, at the batch that was due.

    Args:
        dataset: The images.
        config: Says how to batch, shuffle and load.
        device: Where batches are put.
        rank: Of this process.
    """

    def __init__(
        self, dataset: TrainingImages, config: TrainingConfig, device: torch.device, rank: int = 0
    ) -> None:
        self._device = device
        self._rank = rank
        self._num_replicas = config.gpus
        self._dataset = UndamagedImages(dataset)
        self._damage = DamageCount(len(dataset) // (1 + config.mirror), quiet=rank > 0)
        self._seed = config.seed
        self._batch = config.batch
        self._options: dict[str, Any] = dict(
            batch_size=config.batch // config.gpus,
            num_workers=config.workers,
            pin_memory=(device.type == "cuda"),
            prefetch_factor=2 if config.workers else None,
            worker_init_fn=ignore_signals,
            # A process that was spawned would spawn its workers, too: they would start slowly, and
            # those of a forkserver outlive it.
            multiprocessing_context="fork" if config.workers and FORKS else None,
        )
        self._position = 0  # images that all processes have taken; what is held ready is not
        self._batches: Iterator | None = None
        self._ahead: tuple[torch.Tensor, torch.Tensor] | None = None  # the next batch
        # Texts about damaged images that nobody has heard of; or why there is no next batch.
        self.pending_damage: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """How far the stream has been drawn, and what was left out."""
        return {"position": self._position, "damaged": self._damage.known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned; before the context is entered."""
        self._position = state["position"]
        self._damage.known = list(state["damaged"])

    def __enter__(self) -> "RealImages":
        self._batches = self._open()
        return self

    def _open(self) -> Iterator:
        sampler = InfiniteSampler(
            len(self._dataset),
            rank=self._rank,
            num_replicas=self._num_replicas,
            seed=self._seed,
            start=self._position,
        )
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        with few_cores_are_fine():
            loader = torch.utils.data.DataLoader(self._dataset, sampler=sampler, **self._options)
            batches = iter(loader)
        if handler is not None:
            # PyTorch's would raise an error anywhere, in the midst of an optimizer step, too.
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGCHLD, handler)
        return batches

    def __exit__(self, *exc_info: object) -> None:
        self._batches = None  # the loader's iterator ends its workers when it goes

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.draw_ahead()
        if self.pending_damage:
            self.merge_damage([self.pending_damage])
        assert self._ahead is not None, "merge_damage() raises where there is no next batch"
        (images, labels), self._ahead = self._ahead, None
        self._position += self._batch
        images = normalize(images.to(self._device, non_blocking=True))
        return images, labels.to(self._device, non_blocking=True)

    def draw_ahead(self) -> None:
        """Have the next batch ready; what is wrong with it is in `pending_damage`, and not raised.

        Where several processes train together, each passes that of all to `merge_damage`.
        """
        if self._ahead is not None:
            return
        try:
            images, labels, damage = self._draw()
        except DatasetError as error:
            self.pending_damage = [Fatal(str(error))]
            return
        self._ahead = images, labels
        self.pending_damage = [text for text in damage if text and text not in self._damage.known]

    def merge_damage(self, damage: Sequence[Sequence[str]]) -> None:
        """Take the damage of all processes into account.

        Args:
            damage: `pending_damage` of each process.

        Raises:
            DatasetError: One of them has no next batch, or too many images are damaged; the same
                in all processes.
        """
        self.pending_damage = []
        texts = [text for of_one in damage for text in of_one]
        if fatal := [text for text in texts if isinstance(text, Fatal)]:
            raise DatasetError(fatal[0])
        self._damage.add(texts)

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor, Sequence[str]]:
        """The next batch: images uint8, labels, texts of `next_whole`.

        The workers are started again where one of them has died.
        """
        for _ in range(RESTARTS):
            try:
                if self._batches is None:
                    with torch.random.fork_rng(devices=[]):  # the start draws a number
                        self._batches = self._open()
                return next(self._batches)
            except Exception as error:
                if self._options["num_workers"] == 0:
                    raise
                if not _of_workers(error):
                    # The text holds the traceback of the worker. The one that led here would keep
                    # the iterator, and thereby the workers, beyond __exit__.
                    raise error.with_traceback(None) from None
                *_, what = str(error).strip().splitlines() or [type(error).__name__]
                logger.warning("Warning: %s. Starting the workers again.", what)
                # Nothing of these may be left when others are forked: they would wait for them.
                self._batches = None
                error.__traceback__ = None
        raise DatasetError(
            f"The data-loader workers have died {RESTARTS} times in a row, which happens when "
            "memory is short, or shared memory (in Docker: --shm-size=1g); give fewer --workers, "
            "or 0."
        )


def require_unchanged(dataset: Any) -> None:
    """Raise DatasetError in all processes if one of them finds other data than it opened."""
    try:
        dataset.check_unchanged()
        problem = None
    except DatasetError as error:
        problem = str(error)
    if problems := list(filter(None, distributed.all_gather(problem))):
        raise DatasetError(problems[0])
