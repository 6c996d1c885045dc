"""Which interventions keep the cooperative stage stable on digits? Writes the table of the docs.

    python benchmarks/coop_stability.py --out=stability --jobs=2

Trains every variant and seed with train.py, one thread each, cooperatively throughout, then
measures every snapshot. Runs that exist are not repeated. Quality is the Frechet distance in the
features of a small classifier (metrics/train_detector.py, trained here once) between all real
digits and as many generated ones: comparable within one folder of runs only.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONSTANT = "--coop-noise-schedule=constant"
# First the noise alone, then every other intervention on a setting that diverges without it.
VARIANTS = {
    "literal noise sqrt(2 eta)": ["--coop-noise=literal", CONSTANT],
    "constant noise 0.03": ["--coop-noise=0.03", CONSTANT],
    "linear noise 0.01": ["--coop-noise=0.01"],
    "linear noise 0.01, clamp 1": ["--coop-noise=0.01", "--coop-clamp=1"],
    "constant noise 0.03, clamp 1": ["--coop-noise=0.03", CONSTANT, "--coop-clamp=1"],
    "constant noise 0.03, step clip 0.1": ["--coop-noise=0.03", CONSTANT, "--coop-step-clip=0.1"],
    "constant noise 0.03, energy L2 0.1": ["--coop-noise=0.03", CONSTANT, "--coop-energy-l2=0.1"],
}
SNAP_TICKS = 5


@click.command()
@click.option("--out", type=Path, required=True, help="Folder of the runs and of results.json")
@click.option("--kimg", default=100, show_default=True, help="Length of every run")
@click.option("--seeds", default=3, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Runs at a time")
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="These variants")
def main(out: Path, kimg: int, seeds: int, jobs: int, only: tuple[str, ...]) -> None:
    """Train, measure, and print the table in Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    data = out / "digits.zip"
    if not data.exists():
        tool = [sys.executable, str(ROOT / "dataset_tool.py"), "--source=digits"]
        subprocess.run([*tool, f"--dest={data}"], check=True)
    cases = [(name, seed) for seed in range(seeds) for name in only or VARIANTS]
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(train, out, data, kimg, *case) for case in cases]:
            done.result()
    measure = FrechetDistance(out.resolve(), data.resolve())
    results = [summarise(out, kimg, name, seed, measure) for name, seed in cases]
    (out / "results.json").write_text(json.dumps(results, indent=1))
    click.echo(markdown(results, kimg))


def run_folder(out: Path, kimg: int, name: str, seed: int) -> Path:
    """Where one run lives."""
    slug = "".join(c if c.isalnum() else "-" for c in name)
    return out / f"{slug}-{kimg}kimg-seed{seed}"


def train(out: Path, data: Path, kimg: int, name: str, seed: int) -> None:
    """Train one run to its end or its divergence; a finished one is left alone."""
    folder = run_folder(out, kimg, name, seed)
    if (folder / "exit-code").exists():
        return
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--data={data}",
        f"--outdir={folder}",
        "--cfg=digits",
        "--gamma=0",
        f"--kimg={kimg}",
        f"--coop-kimg={kimg}",
        f"--seed={seed}",
        f"--snap={SNAP_TICKS}",
        "--workers=0",
        *VARIANTS[name],
    ]
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted run
    folder.mkdir()
    with open(folder / "output.txt", "w") as log:
        done = subprocess.run(
            command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    output = (folder / "output.txt").read_text()
    if done.returncode != 0 and "diverged" not in output:
        raise RuntimeError(f"{' '.join(command)} failed: {output[-500:]}")
    (folder / "exit-code").write_text(str(done.returncode))


class FrechetDistance:
    """Distance between all real digits and as many images of a snapshot, by a detector of `out`."""

    def __init__(self, out: Path, data: Path) -> None:
        from metrics.evaluation import Evaluation, Settings
        from metrics.feature_sources import FileSource
        from metrics.registry import find_metric
        from metrics.sources import ImageFiles

        detector = out / "digits.pt"
        if not detector.exists():
            train = [sys.executable, "-m", "metrics.train_detector", f"--data={data}"]
            subprocess.run([*train, f"--out={detector}"], check=True, cwd=ROOT)
        real = FileSource(ImageFiles(str(data)))
        self._metric = find_metric("fid50k_full").with_count(real.available(True))
        self._evaluation = Evaluation(real, Settings(detector=str(detector), noise_mode="const"))

    def __call__(self, snapshot: Path) -> float:
        """Frechet distance of the snapshot's G_ema."""
        import torch

        from metrics.feature_sources import NetworkSource
        from training.run.snapshot_file import read_sampler

        sampler, _ = read_sampler(str(snapshot), str(snapshot), torch.device("cpu"))
        generated = NetworkSource(sampler, None, seed=0, noise_mode="const")
        [result] = self._evaluation.measure([self._metric], generated) or []
        return result.values[result.metric]


def summarise(
    out: Path, kimg: int, name: str, seed: int, measure: Callable[[Path], float]
) -> dict[str, Any]:
    """What one run did: reached kimg, extremes of its logs, distance of each snapshot."""
    folder = run_folder(out, kimg, name, seed)
    (run,) = folder.glob("[0-9]*")
    ticks = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]

    def curve(quantity: str) -> list[Any]:
        return [tick[quantity]["mean"] for tick in ticks if quantity in tick]

    snapshots = sorted(run.glob("network-snapshot-*.pkl"))
    return {
        "variant": name,
        "seed": seed,
        "stable": (folder / "exit-code").read_text() == "0",
        "kimg": curve("Progress/kimg")[-1],
        "energy_gap": curve("Coop/energy_gap"),
        "displacement": curve("Coop/displacement"),
        "score_real": curve("Loss/scores/real"),
        "distance": {int(path.stem[-6:]): measure(path) for path in snapshots},
    }


def markdown(results: list[dict[str, Any]], kimg: int) -> str:
    """One row a variant; values of all seeds, in the order of the seeds."""
    lines = [
        "| variant | ran to the end | stopped at kimg | largest displacement "
        "| best distance (at kimg) | last distance |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result["variant"] for result in results):
        rows = [result for result in results if result["variant"] == name]
        best = [min(row["distance"].items(), key=lambda item: item[1]) for row in rows]
        cells = [
            f"{sum(row['stable'] for row in rows)} of {len(rows)}",
            ", ".join("-" if row["stable"] else f"{row['kimg']:.0f}" for row in rows),
            ", ".join(largest(row["displacement"]) for row in rows),
            ", ".join(f"{distance:.1f} ({at})" for at, distance in best),
            ", ".join(f"{list(row['distance'].values())[-1]:.1f}" for row in rows),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def largest(curve: list[Any]) -> str:
    """The largest value as text; a null in stats.jsonl was not finite."""
    return "inf" if None in curve else f"{max(curve):.2g}"


if __name__ == "__main__":
    main()
