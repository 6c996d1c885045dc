"""Signals that ask a run to stop: it finishes the iteration, saves, and ends well."""

import contextlib
import logging
import signal
from types import FrameType
from typing import Any

from torch_utils.distributed import SIGNALS

logger = logging.getLogger(__name__)


class Interruption:
    """Context in which signals are noted instead of ending the process.

    A second Ctrl-C ends it at once. Outside the main thread nothing is changed.
    """

    def __init__(self) -> None:
        self.name: str | None = None  # of the signal that came
        self._before: dict[int, Any] = {}  # handlers by signal

    def __enter__(self) -> "Interruption":
        with contextlib.suppress(ValueError):  # only the main thread may do this
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        if self.name is None:
            self.name = signal.Signals(number).name
            logger.info("%s: saving after this iteration.", self.name)


def ignore_signals(_worker: int | None = None) -> None:
    """For data-loader workers, which share the terminal and the job: the trainer ends them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
