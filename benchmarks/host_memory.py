"""What keeping freed memory gains on the CPU: `torch_utils.host_memory`, with and without.

    python benchmarks/host_memory.py --threads=1 --save=benchmarks/results/host-memory-1.json

Runs benchmarks/train_step.py for the demo in processes of their own, in turns: plain PyTorch or
the operators of --ops=auto, the memory kept or not. Reports medians over the processes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
DEMO = "--cfg=digits --resolution=16 --channels=1 --device=cpu --gamma=2 --aug=noaug".split()
CODE = """
import sys
sys.path.insert(0, {root!r})
from torch_utils import host_memory
if not {keep}:
    host_memory.keep_freed_memory = lambda: None
from benchmarks.train_step import main
main({args!r})
"""
MODES = [(ops, keep) for ops in ("ref", "auto") for keep in (False, True)]
NUMBERS = ("seconds_per_iteration", "peak_memory_gb")


@click.command()
@click.option("--threads", default=1, show_default=True, help="OMP_NUM_THREADS")
@click.option("--repeats", default=5, show_default=True, help="Processes of each kind")
@click.option("--save", type=Path, help="Write the numbers to this JSON file")
def main(threads: int, repeats: int, save: Path | None) -> None:
    """Measure and print a table."""
    runs: dict[tuple[str, bool], list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for _ in range(repeats):
        for (ops, keep), reports in runs.items():
            reports.append(measure(ops, keep, threads))
    first = runs[MODES[0]][0]
    report = {key: first[key] for key in ("date", "device", "torch", "threads", "options")}
    report |= {"repeats": repeats, "processes": [row(*mode, runs[mode]) for mode in MODES]}
    click.echo(text(report))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n")


def measure(ops: str, keep: bool, threads: int) -> dict[str, Any]:
    """The report of benchmarks/train_step.py, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        args = [*DEMO, f"--ops={ops}", f"--save={path}"]
        code = CODE.format(root=str(ROOT), keep=keep, args=args)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", code]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text()) | {"options": DEMO}


def row(ops: str, keep: bool, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of all processes of one kind; all seconds, too."""
    stages = {}
    for name in reports[0]["stages"]:
        values = {key: [report["stages"][name][key] for report in reports] for key in NUMBERS}
        stages[name] = {key: statistics.median(value) for key, value in values.items()}
        stages[name]["all_seconds"] = values["seconds_per_iteration"]
    return dict(ops=ops, kept=keep, stages=stages)


def text(report: dict[str, Any]) -> str:
    """The report as lines."""
    lines = [f"{report['device']}, {report['threads']} threads; ms per iteration, peak GiB"]
    for process in report["processes"]:
        line = f"{process['ops']:7s} {'kept' if process['kept'] else 'not kept':9s}"
        for name, stage in process["stages"].items():
            seconds, memory = (stage[key] for key in NUMBERS)
            line += f"  {name} {seconds * 1e3:6.1f} {memory:5.2f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
