"""Where results go: the official JSON lines, a few words for people, the best snapshots."""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from dnnlib.full_disk import append_whole
from dnnlib.util import atomic_write
from metrics.evaluation import Result
from training.monitor.metric_records import read_records
from training.monitor.reporting import format_time


def json_line(result: Result, snapshot: str | None, run_dir: Path | None = None) -> str:
    """The record of a result: the official fields, then ours (detector, counts, seed).

    Args:
        result: It.
        snapshot: What was measured, by path or URL.
        run_dir: Folder of the run that the snapshot lies in, if it does.
    """
    name = snapshot
    if snapshot is not None and run_dir is not None:
        name = Path(snapshot).name
    return json.dumps(
        {
            "results": result.values,
            "metric": result.metric,
            "total_time": result.seconds,
            "total_time_str": format_time(result.seconds),
            "num_gpus": result.processes,
            "snapshot_pkl": name,
            "timestamp": time.time(),
            "detector": result.detector,
            "num_real": result.num_real,
            "num_generated": result.num_generated,
            **result.settings,
        }
    )


def run_dir_of(snapshot: str) -> Path | None:
    """The run folder that a snapshot lies in, or None."""
    folder = Path(snapshot).parent
    return folder if (folder / "training_options.json").is_file() else None


def append_result(run_dir: Path, result: Result, line: str) -> None:
    """Add a line to metric-NAME.jsonl of a run folder.

    Args:
        run_dir: The folder.
        result: What was measured.
        line: Its `json_line`.

    Raises:
        OSError: It cannot be written.
    """
    append_whole(run_dir / f"metric-{result.metric}.jsonl", f"{line}\n".encode())


def describe(result: Result, histograms: bool = True) -> list[str]:
    """The values in words; a histogram as a line a class, or left out."""
    lines = []
    for name, value in result.values.items():
        if isinstance(value, list) and not histograms:
            continue
        if isinstance(value, list):
            lines.append(f"{name}:")
            longest = max(*value, 1)
            lines += [
                f"  {index:4d} {count:7d} {'#' * math.ceil(40 * count / longest)}"
                for index, count in enumerate(value)
            ]
        elif isinstance(value, float):
            lines.append(f"{name} {value:.4f}")
        else:
            lines.append(f"{name} {value}")
    return lines


def keep_best(run_dir: Path, result: Result, snapshot: Path) -> list[Path]:
    """Copy a snapshot to network-best-METRIC.pkl for every value that is the best of the run.

    Call it after append_result(): the run's earlier values are read from its JSON lines, so that
    a run that is resumed remembers. Values are compared with those that were measured alike.

    Args:
        run_dir: The run folder.
        result: What was measured.
        snapshot: Of what, a file in the folder.

    Returns:
        The files written.

    Raises:
        OSError: One cannot be written.
    """
    history = read_records(run_dir / f"metric-{result.metric}.jsonl")[:-1]
    history = [record for record in history if _is_alike(record, result)]
    written = []
    for name, sign in result.better.items():
        if not _is_number(result.values[name]):
            continue
        values = [(record.get("results", {}).get(name), record) for record in history]
        earlier = [(value, record) for value, record in values if _is_number(value)]
        best = {"lower": min, "higher": max}[sign]
        value, record = best(earlier, key=lambda pair: pair[0], default=(None, None))
        path = run_dir / f"network-best-{name}.pkl"
        source = snapshot
        if value is not None and best(value, result.values[name]) == value:
            # The one before was better; if calc_metrics.py has measured it, it was not kept.
            source = run_dir / Path(str(record.get("snapshot_pkl"))).name
            if path.exists() or not source.is_file():
                continue
        with atomic_write(path) as target, open(source, "rb") as file:
            shutil.copyfileobj(file, target)
        written.append(path)
    return written


def _is_alike(record: dict[str, Any], result: Result) -> bool:
    """Whether an earlier record is of the same detector, seed, noise and numbers of images."""
    same = {"num_real": result.num_real, "num_generated": result.num_generated, **result.settings}
    detector = record.get("detector")
    sha256 = detector.get("sha256") if isinstance(detector, dict) else None
    return sha256 == result.detector["sha256"] and all(
        record.get(name) == value for name, value in same.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
