"""metric-NAME.jsonl of a run folder: what was measured of its snapshots."""

import json
import re
from pathlib import Path


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
    for path in sorted(Path(run_dir).glob("metric-*.jsonl")):
        for record in read_records(path):
            kimg = re.search(r"network-snapshot-(\d+)\.pkl$", str(record.get("snapshot_pkl")))
            if kimg:
                numbers = {k: v for k, v in record["results"].items() if isinstance(v, int | float)}
                found.setdefault(int(kimg[1]), {}).update(numbers)
    return dict(sorted(found.items()))
