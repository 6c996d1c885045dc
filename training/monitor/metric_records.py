"""metric-NAME.jsonl of a run folder: what was measured of its snapshots."""

import json
import re
from pathlib import Path

from dnnlib.util import atomic_write

MEASUREMENTS = "metric-*.jsonl"
_SNAPSHOT = re.compile(r"network-snapshot-(\d+)\.pkl$")


def read_records(path):
    """The lines of one file as dicts with "results", in order; a line that was cut off is {}."""
    if not Path(path).exists():
        return []
    return [_record(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _record(line):
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("results"), dict) else {}


def metrics_by_kimg(run_dir):
    """Numbers of all metrics of a run: {kimg: {name: value}}, the latest where one was repeated."""
    found = {}
    for path in sorted(Path(run_dir).glob(MEASUREMENTS)):
        for record in read_records(path):
            kimg = _kimg(record)
            if kimg is not None:
                numbers = {k: v for k, v in record["results"].items() if isinstance(v, int | float)}
                found.setdefault(kimg, {}).update(numbers)
    return dict(sorted(found.items()))


def metric_of(path):
    """Name of the metric of a file, without its detector: fid2k_full of fid2k_full@own."""
    return Path(path).stem.removeprefix("metric-").partition("@")[0]


def forget_measurements(path, size, kimg, pending_evaluation=None):
    """Of what was appended beyond `size` bytes, take away what is of snapshots after `kimg`.

    So is what is of the snapshot of the name `pending_evaluation`. Other lines stay:
    calc_metrics.py appends what it measures, too.
    """

    def stays(line):
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


def _kimg(record):
    """Of the snapshot that was measured, or None."""
    name = _SNAPSHOT.search(str(record.get("snapshot_pkl")))
    return None if name is None else int(name[1])
