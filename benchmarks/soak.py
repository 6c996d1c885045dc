"""Train for hours while processes are killed, disks are full and files are damaged.

    python benchmarks/soak.py --hours=1 --save=results.json

A run of the demo's size is trained once undisturbed. Then the same run is trained again and again,
each time by giving the same command until it is done, while faults are injected at random moments
that follow from --seed. A fault counts as recovered when the process ended as it should, and the
next one resumes from the newest whole checkpoint (or, where none had been written, starts over).
The result must be that of the undisturbed run, to the bit. Some images of the data set are damaged
from the start, as both runs must see the same; a run finds them while it trains, and has to name
each of them. "Full disk" is a limit on the size of files, which makes
every write beyond it fail; it needs Linux.

Exits with 1 unless every fault was recovered, no image lost or repeated, and every run equal.
"""

import collections
import datetime
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import faults
from benchmarks.faults import FAULTS, Trainer
from benchmarks.train_step import processor
from dnnlib.util import atomic_write
from training.run.checkpoint_file import read_checkpoint

OPTIONS = (
    "--cfg=digits",
    "--gamma=2",
    "--aug=ada",
    "--pl-weight=2",
    "--snap=1",
    "--device=cpu",
    "--save-minutes=0.05",
    "--coop-steps=5",
)
DAMAGED_IMAGES = 5  # of 1797; a run stops at more than 1 %
MAX_SECONDS = 20  # between two faults
UNDISTURBED = "none: ended by itself"
TIMES = ("Timing", "Resources", "timestamp")  # what no two runs have in common in stats.jsonl


@click.command()
@click.option("--hours", default=1.0, show_default=True)
@click.option("--kimg", default=12, show_default=True, help="Length of each run")
@click.option("--seed", default=0, show_default=True, help="Of the faults")
@click.option("--save", type=Path, help="Write the numbers to this JSON file, after every run")
def main(hours: float, kimg: int, seed: int, save: Path | None) -> None:
    """Inject faults until the time is up, and print what became of them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "torch": torch.__version__,
        "hours": hours,
        "kimg": kimg,
        "seed": seed,
        "options": OPTIONS,
    }
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "digits.zip"
        damaged = write_data(data)
        command = [sys.executable, "train.py", f"--data={data}", f"--kimg={kimg}", *OPTIONS]
        command += [f"--coop-kimg={kimg // 2}"]
        soak = Soak(command, kimg * 1000, random.Random(seed), time.monotonic() + hours * 3600)
        try:
            expected = soak.undisturbed(Path(name) / "undisturbed")
            while time.monotonic() < soak.end:
                soak.disturbed(Path(name) / f"disturbed-{soak.runs}", expected, damaged)
                soak.tell(settings, save)
        except KeyboardInterrupt:
            click.echo("Stopped; of the run in progress count the faults that are over.")
            soak.tell(settings, save)
    sys.exit(0 if soak.clean else 1)


def write_data(path: Path) -> list[str]:
    """The digits with some images cut off; returns their names."""
    whole = path.with_name("whole.zip")
    command = [sys.executable, "dataset_tool.py", "--source=digits", f"--dest={whole}"]
    subprocess.run(command, cwd=ROOT, check=True)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        images = [name for name in source.namelist() if name.endswith(".png")]
        damaged = images[:: len(images) // DAMAGED_IMAGES][:DAMAGED_IMAGES]
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[: len(content) // 2] if name in damaged else content)
    return damaged


class Expectation(NamedTuple):
    """What the next process has to do, by the checkpoints that it finds."""

    damaged: list[str]  # names of checkpoints that it must name: those above the newest whole one
    nimg: int | None  # where to resume; None: there is no whole checkpoint

    @classmethod
    def of(cls, outdir: Path) -> "Expectation":
        """By the newest run folder below `outdir`."""
        damaged: list[str] = []
        for checkpoint in faults.find_run_checkpoints(outdir):
            if faults.is_whole(checkpoint.path):
                return cls(damaged, checkpoint.nimg)
            damaged.append(checkpoint.path.name)
        return cls(damaged, None)

    @property
    def kind(self) -> str:
        """In words."""
        if self.nimg is not None:
            return "resumed from a checkpoint"
        return (
            "refused, all checkpoints damaged"
            if self.damaged
            else "started over, no checkpoint yet"
        )

    def met_by(self, trainer: Trainer) -> bool | None:
        """Whether a process did it; None where a fault ended it before it could."""
        said = trainer.said()
        start = re.search(r"stage from kimg ([\d.]+)", said)
        if start is None and not trainer.refused:
            return None if trainer.faults and trainer.ended_well else False
        if not all(name in said for name in self.damaged):
            return False
        if self.nimg is None:
            if self.damaged:
                return trainer.refused
            return start is not None and start[1] == "0.0" and "Resuming" not in said
        if start is None or "Resuming" not in said:
            return False
        return start[1] == f"{self.nimg / 1e3:.1f}"


class Soak:
    """Runs under faults, and counts of what became of them.

    Args:
        command: Of a run, without --outdir and --workers.
        nimg: Images that it sees.
        rng: Of the faults.
        end: When to inject no more of them, on the clock of time.monotonic().
    """

    def __init__(self, command: Sequence[str], nimg: int, rng: random.Random, end: float) -> None:
        self.command, self.nimg, self.rng, self.end = command, nimg, rng, end
        self.injected: collections.Counter[str] = collections.Counter()
        self.recovered: collections.Counter[str] = collections.Counter()
        self.processes: collections.Counter[str] = collections.Counter()  # by what they did
        self.problems: list[str] = []
        self.runs = self.equal = self.lost = 0
        self._deck: list[str] = []  # kinds of faults that are due before any comes again

    @property
    def clean(self) -> bool:
        """Whether all is as it should be."""
        return self.runs == self.equal > 0 == self.lost and self.injected == self.recovered

    def report(self) -> dict[str, Any]:
        """All counts."""
        kinds = [*FAULTS, *sorted(self.injected.keys() - FAULTS.keys())]
        return {
            "faults": {
                kind: {"injected": self.injected[kind], "recovered": self.recovered[kind]}
                for kind in kinds
            },
            "processes": dict(self.processes),
            "runs": self.runs,
            "runs_equal": self.equal,
            "images_lost_or_repeated": self.lost,
            "problems": self.problems,
        }

    def tell(self, settings: dict[str, Any], path: Path | None) -> None:
        """Print the table, and write it with the settings where a file is asked for."""
        click.echo(self.table())
        if path is not None:
            with atomic_write(path) as file:
                file.write((json.dumps(settings | self.report(), indent=1) + "\n").encode())

    def table(self) -> str:
        """The counts as text."""
        report = self.report()
        lines = [f"{'fault':28}{'injected':>10}{'recovered':>11}"]
        lines += [
            f"{kind:28}{counts['injected']:10}{counts['recovered']:11}"
            for kind, counts in report["faults"].items()
        ]
        processes = ", ".join(f"{count} {kind}" for kind, count in self.processes.items())
        lines += [
            f"processes: {processes}",
            f"runs {self.runs}, images lost or repeated {self.lost}, weights and all else equal "
            f"in {self.equal} runs",
            *(f"PROBLEM: {problem}" for problem in self.problems),
        ]
        return "\n".join(lines) + "\n"

    def undisturbed(self, outdir: Path) -> Path:
        """Run folder of the run that nobody disturbs."""
        command = [*self.command, f"--outdir={outdir}", "--workers=0"]
        with Trainer(command, self.nimg) as trainer:
            if trainer.wait() != 0:
                raise click.ClickException(f"the undisturbed run failed: {trainer.said()}")
        return faults.run_dir_of(outdir)

    def disturbed(self, outdir: Path, expected: Path, damaged: Iterable[str]) -> None:
        """Train the run under faults, and compare it with the run folder `expected`."""
        pending: list[str] = []
        restart = done = False
        while not done:
            expectation = Expectation([], None) if restart else Expectation.of(outdir)
            trainer = self.train(outdir, restart)
            done = faults.is_finished(outdir, self.nimg)
            verdict = expectation.met_by(trainer)
            if verdict is False:
                self.problem(f"should have {expectation}", trainer)
            if verdict is not None:
                self.processes[expectation.kind] += 1
                self.count(pending, verdict)
                pending = []
            stuck = not (trainer.faults or trainer.refused or done)
            if stuck or not trainer.ended_well:
                self.problem("ended as it should not", trainer)
                self.count(trainer.faults[-1:] or [UNDISTURBED], False)
                pending += trainer.faults[:-1]
            else:
                pending += trainer.faults
            if stuck:
                break  # the next one would do the same
            # --restart until the new run has a checkpoint: else the damaged ones are found again.
            restart = trainer.refused or (restart and not faults.find_run_checkpoints(outdir))
        self.count(pending, done)
        self.runs += 1
        if done:
            self.compare(faults.run_dir_of(outdir), expected, damaged)
        shutil.rmtree(outdir)

    def train(self, outdir: Path, restart: bool) -> Trainer:
        """One process under faults, to its end."""
        workers = self.rng.randint(0, 2)
        command = [*self.command, f"--outdir={outdir}", f"--workers={workers}"]
        with Trainer(command + ["--restart"] * restart, self.nimg) as trainer:
            while not trainer.ends_within(self.rng.uniform(1, MAX_SECONDS)):
                if time.monotonic() < self.end:
                    self.inject(trainer, outdir)
        return trainer

    def inject(self, trainer: Trainer, outdir: Path) -> None:
        """The next kind of fault that is possible now; each comes once before any comes again."""
        if not self._deck:
            self._deck = self.rng.sample(list(FAULTS), len(FAULTS))
        for kind in list(self._deck):
            if FAULTS[kind](trainer, outdir, self.rng):
                trainer.faults.append(kind)
                self._deck.remove(kind)
                return

    def count(self, kinds: Sequence[str], recovered: bool) -> None:
        """Faults of which it is known now what became of them."""
        self.injected.update(kinds)
        self.recovered.update(kinds if recovered else [])

    def problem(self, what: str, trainer: Trainer) -> None:
        """Keep what a process said that did not do as it should."""
        suffered = ", ".join(trainer.faults) or "no fault"
        said = "\n".join(trainer.said().splitlines()[-30:])
        end = f"a process with {suffered} that ended with {trainer.code}"
        self.problems.append(f"run {self.runs}, {end} {what}:\n{said}")

    def compare(self, run_dir: Path, expected: Path, damaged: Iterable[str]) -> None:
        """A finished run with the one that nobody disturbed."""
        names = named_images(run_dir)
        for image in damaged:
            self.count(["damaged image"], image in names)
        differing = differences(run_dir, expected)
        if differing:
            self.problems.append(f"run {self.runs} differs: {', '.join(differing)}")
        self.lost += images_off(run_dir, expected)
        self.equal += not differing


def named_images(run_dir: Path) -> list[str]:
    """Images that the log of a run names as left out."""
    lines = (run_dir / "log.txt").read_text().splitlines()
    return [
        found[1] for line in lines if "left out" in line and (found := re.search(r"'(.*?)'", line))
    ]


def final_checkpoint(run_dir: Path) -> dict[str, Any]:
    """Content of the newest checkpoint, without times."""
    content = read_checkpoint(faults.find_run_checkpoints(run_dir.parent)[0].path)
    reporter = content["parts"]["reporter"]
    content["parts"]["reporter"] = {name: reporter[name] for name in ("tick", "tick_nimg")}
    return content


def ticks(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of stats.jsonl, without times."""
    text = (run_dir / "stats.jsonl").read_text()
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(TIMES)}
        for line in text.splitlines()
    ]


def differences(run_dir: Path, expected: Path) -> list[str]:
    """Names of what differs between two finished runs."""
    a, b = final_checkpoint(run_dir), final_checkpoint(expected)
    names = sorted(a["parts"].keys() | b["parts"].keys())
    found = [name for name in names if not same(a["parts"].get(name), b["parts"].get(name))]
    found += [name for name in ("random", "dataset") if not same(a[name], b[name])]
    return found + ["stats.jsonl"] * (ticks(run_dir) != ticks(expected))


def images_off(run_dir: Path, expected: Path) -> int:
    """Images that were lost or came twice: by ticks, by the counter and by the sampler."""
    seen = [
        [tick["Loss/signs/real"]["num"] for tick in ticks(folder)] for folder in (run_dir, expected)
    ]
    off = sum(abs(a - b) for a, b in itertools.zip_longest(*seen, fillvalue=0))
    a, b = (final_checkpoint(folder)["parts"] for folder in (run_dir, expected))
    return (
        off
        + abs(a["training"]["progress"]["nimg"] - b["training"]["progress"]["nimg"])
        + abs(a["data"]["position"] - b["data"]["position"])
    )


def same(a: Any, b: Any) -> bool:
    """Whether two nested dicts and lists of tensors and values are equal, to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


if __name__ == "__main__":
    main()
