"""metric-NAME.jsonl of a run folder: what was measured of its snapshots."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnnlib.util import atomic_write

MEASUREMENTS = "metric-*.jsonl"
_SNAPSHOT = re.compile(r"network-snapshot-(\d+)\.pkl$")


def read_records(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of one file as dicts with "results", in order; a line that was cut off is {}."""
    if not Path(path).exists():
        return []
    return [_record(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _record(line: str | bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("results"), dict) else {}


def metrics_by_kimg(run_dir: str | os.PathLike) -> dict[int, dict[str, float]]:
    """Numbers of all metrics of a run: {kimg: {name: value}}, the latest where one was repeated."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted(Path(run_dir).glob(MEASUREMENTS)):
        for record in read_records(path):
            kimg = _kimg(record)
            if kimg is not None:
                numbers = {k: v for k, v in record["results"].items() if isinstance(v, int | float)}
                found.setdefault(kimg, {}).update(numbers)
    return dict(sorted(found.items()))


def metric_of(path: str | os.PathLike) -> str:
    """Name of the metric of a file, without its detector: fid2k_full of fid2k_full@own."""
    return Path(path).stem.removeprefix("metric-").partition("@")[0]


def forget_measurements(
    path: str | os.PathLike, size: int, kimg: int, pending_evaluation: str | None = None
) -> None:
    """Take away what a resumed run will measure again.

    Other lines stay: calc_metrics.py appends what it measures, too.

    Args:
        path: The file.
        size: Its length in bytes when the checkpoint was saved; what lies before stays.
        kimg: Snapshots after this are made again.
        pending_evaluation: Name of a snapshot that is measured again, or None.
    """

    def stays(line: bytes) -> bool:
        record = _record(line)
        measured = _kimg(record)
        is_lost = measured is not None and measured > kimg
        again = pending_evaluation is not None and record.get("snapshot_pkl") == pending_evaluation
        return line.endswith(b"\n") and not (is_lost or again)

    data = Path(path).read_bytes()
    appended = data[size:].splitlines(keepends=True)
    kept = [line for line in appended if stays(line)]
    if kept != appended:
        with atomic_write(path) as file:
            file.write(data[:size] + b"".join(kept))


def _kimg(record: Mapping[str, Any]) -> int | None:
    """Of the snapshot that was measured, or None."""
    name = _SNAPSHOT.search(str(record.get("snapshot_pkl")))
    return None if name is None else int(name[1])
