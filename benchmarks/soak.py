"""Train for hours while processes are killed, disks are full and files are damaged.

    python benchmarks/soak.py --hours=1 --save=results.json

A run of the demo's size is trained once undisturbed. Then the same run is trained again and again,
each time by giving the same command until it is done, while faults are injected at random moments
that follow from --seed. Each is compared with the undisturbed one, to the bit. "Full disk" is a
limit on the size of files, which makes every write beyond it fail; it needs Linux.
"""

import collections
import datetime
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from training.checkpoint import find_states, read_state  # noqa: E402

OPTIONS = (
    "--cfg=digits", "--gamma=2", "--aug=ada", "--pl-weight=2", "--snap=1", "--device=cpu",
    "--save-minutes=0.05", "--coop-steps=5",
)  # fmt: skip
FULL_DISK_BYTES = 4096


@click.command()
@click.option("--hours", default=1.0, show_default=True)
@click.option("--kimg", default=12, show_default=True, help="Length of each run")
@click.option("--seed", default=0, show_default=True, help="Of the faults")
@click.option("--save", type=Path, help="Write the numbers to this JSON file")
def main(hours, kimg, seed, save):
    """Inject faults until the time is up, and print what became of them."""
    end = time.monotonic() + hours * 3600
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "digits.zip"
        source = ["--source=digits", f"--dest={data}"]
        subprocess.run([sys.executable, "dataset_tool.py", *source], cwd=ROOT, check=True)
        command = [sys.executable, "train.py", f"--data={data}", *OPTIONS, f"--kimg={kimg}"]
        command += [f"--coop-kimg={kimg // 2}"]
        soak = Soak(command, random.Random(seed))
        expected = soak.undisturbed(folder / "undisturbed")
        while time.monotonic() < end:
            soak.disturbed(folder / "disturbed", expected)
            click.echo(table(soak))
            shutil.rmtree(folder / "disturbed")
    report = soak.report() | {
        "date": datetime.date.today().isoformat(),
        "device": platform.processor() or "CPU",
        "torch": torch.__version__,
        "hours": hours,
        "kimg": kimg,
        "seed": seed,
        "options": OPTIONS,
    }
    if save is not None:
        save.write_text(json.dumps(report, indent=1) + "\n")


class Soak:
    """Runs under faults, and counts of what became of them.

    Args:
        command: Of a run, without --outdir and --workers.
        rng: Of the faults.
    """

    def __init__(self, command, rng):
        self.command = command
        self.rng = rng
        self.injected = collections.Counter()
        self.recovered = collections.Counter()
        self.runs = self.equal = self.lost = self.starts = 0

    def report(self):
        """All counts."""
        return {
            "faults": {
                name: {"injected": count, "recovered": self.recovered[name]}
                for name, count in sorted(self.injected.items())
            },
            "runs": self.runs,
            "starts": self.starts,
            "runs_with_equal_weights": self.equal,
            "images_lost": self.lost,
        }

    def undisturbed(self, outdir):
        """State of the run that nobody disturbs."""
        process = self.start(outdir)
        if process.wait() != 0:
            raise click.ClickException(f"the undisturbed run failed: {output(outdir)}")
        return final_state(outdir)

    def disturbed(self, outdir, expected):
        """Train the run under faults, and compare it."""
        pending = []  # faults of the process before
        while True:
            process = self.start(outdir)
            faults = self.disturb(process, outdir)
            code = process.wait()
            said = output(outdir)
            for fault in pending:
                went_on = "Going on with" in said or "Run folder" in said
                self.recovered[fault] += went_on and (
                    fault != "damaged state" or "is truncated or damaged" in said
                )
            pending = []
            for fault in faults:
                self.injected[fault] += 1
                survived = code == 0 and fault in ("worker killed", "full disk", "SIGTERM")
                if survived:
                    self.recovered[fault] += 1
                else:
                    pending.append(fault)
            if code == 0 and "Done." in said:
                break
            if damage(outdir, self.rng):
                self.injected["damaged state"] += 1
                pending.append("damaged state")
        for fault in pending:
            self.recovered[fault] += 1
        state = final_state(outdir)
        self.runs += 1
        self.equal += same(state["parts"]["training"], expected["parts"]["training"])
        self.lost += abs(images_reported(outdir) - images(expected)) + abs(
            images(state) - images(expected)
        )

    def start(self, outdir):
        """A process that trains; what it says goes to a file."""
        self.starts += 1
        outdir.mkdir(exist_ok=True)
        with open(outdir / "output", "w") as file:
            workers = f"--workers={self.rng.randint(0, 1)}"
            return subprocess.Popen(
                [*self.command, f"--outdir={outdir}", workers],
                cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def disturb(self, process, outdir):
        """Inject faults into a process until one of them ends it, or it is done."""
        faults = []
        while not ends_within(process, self.rng.uniform(1, 40)):
            kind = self.rng.choice(["killed", "killed", "killed while saving", "SIGTERM",
                                    "worker killed", "full disk"])  # fmt: skip
            if getattr(self, kind.replace(" ", "_").lower())(process, outdir):
                faults.append(kind)
        return faults

    def killed(self, process, outdir):
        """At any moment."""
        process.kill()
        return True

    def killed_while_saving(self, process, outdir):
        """With a half-written state."""
        patience = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < patience:
            if list(outdir.glob("0*/.training-state-*.part")):
                process.kill()
                return True
            time.sleep(0.001)
        return False

    def sigterm(self, process, outdir):
        """As process managers ask a job to end."""
        if not find_run_states(outdir):
            return False  # signals are noted once training begins
        process.send_signal(signal.SIGTERM)
        process.wait()
        return True

    def worker_killed(self, process, outdir):
        """As the kernel does where memory is short."""
        workers = psutil.Process(process.pid).children() if process.poll() is None else []
        for worker in workers:
            worker.kill()
        return bool(workers)

    def full_disk(self, process, outdir):
        """For some seconds, of which the third failed save ends the run."""
        try:
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, hard))
            ended = ends_within(process, self.rng.uniform(3, 20))
            if not ended:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        except ProcessLookupError:
            return False
        return True


def ends_within(process, seconds):
    """Wait that long; returns whether the process has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def run_dir_of(outdir):
    """The newest run folder: one that lost its process before its first state is left behind."""
    return max(outdir.glob("0*"), default=outdir)


def find_run_states(outdir):
    """States of the run below `outdir`, the newest first."""
    return find_states(run_dir_of(outdir))


def damage(outdir, rng):
    """Cut off or change the newest state, if there is one before it; now and then."""
    states = find_run_states(outdir)
    if len(states) < 2 or rng.random() < 0.5:
        return False
    path = states[0].path
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return True


def output(outdir):
    """What the latest process said."""
    return (outdir / "output").read_text(errors="replace")


def final_state(outdir):
    """Content of the newest state."""
    return read_state(find_run_states(outdir)[0].path)


def images(state):
    """Images seen."""
    return state["parts"]["training"]["nimg"]


def images_reported(outdir):
    """Images seen, by the last tick of stats.jsonl; -1 where its ticks have a gap or repeat."""
    text = (run_dir_of(outdir) / "stats.jsonl").read_text()
    ticks = [json.loads(line) for line in text.splitlines()]
    numbers = [tick["Progress/tick"]["mean"] for tick in ticks]
    if numbers != list(range(len(numbers))):
        return -1
    return round(ticks[-1]["Progress/kimg"]["mean"] * 1000)


def same(a, b):
    """Whether two nested dicts and lists of tensors and values are equal, to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def table(soak):
    """The counts as text."""
    report = soak.report()
    lines = [f"{'fault':24}{'injected':>10}{'recovered':>11}"]
    lines += [
        f"{name:24}{counts['injected']:10}{counts['recovered']:11}"
        for name, counts in report["faults"].items()
    ]
    lines.append(
        f"runs {report['runs']}, processes {report['starts']}, images lost "
        f"{report['images_lost']}, weights equal in {report['runs_with_equal_weights']} runs"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
