"""TensorBoard's event files, each tick written at once.

`SummaryWriter` writes in a thread, which ends with a traceback when the disk is full.
"""

import io
import itertools
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from dnnlib.full_disk import append_whole

_numbers = itertools.count()  # of the files of this process


class EventFile:
    """A new event file of a run folder, made by the first write.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str | os.PathLike) -> None:
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path = Path(run_dir) / f"events.out.tfevents.{name}"

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append numbers {name: value}, except for those that are not finite.

        Raises:
            OSError: The disk is full; nothing was written.
        """
        # Imported late: TensorBoard takes longer to import than a small run needs to start.
        # protobuf makes these classes at run time.
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        begun = self._path.exists() and self._path.stat().st_size > 0
        events = [] if begun else [Event(wall_time=now, file_version="brain.Event:2")]
        for name, value in values.items():
            if math.isfinite(value):
                summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
                events.append(Event(wall_time=now, step=step, summary=summary))
        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(event.SerializeToString())
        append_whole(self._path, records.getvalue())
