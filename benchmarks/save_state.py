"""What saving training states costs a run.

    python benchmarks/save_state.py --cfg=digits --resolution=16 --channels=1
    python benchmarks/save_state.py --cfg=cifar --gamma=0 --device=cuda --save=results.json

Takes every option of train.py that says how to train. Images are random. Blocks of training with
one save each and blocks without any alternate, so that a noisy machine is the same for both. The
pause is what the training thread waits for inside a save; the rest of the cost is that the writing
thread takes time from training. Shares are given for the interval measured and for the default.
"""

import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import train  # noqa: E402
from training.checkpoint import find_states  # noqa: E402
from training.command import machine_settings  # noqa: E402
from training.config import TrainingConfig  # noqa: E402
from training.training_loop import TrainingRun  # noqa: E402

DEFAULT_SECONDS = 60 * next(
    field.default
    for field in TrainingConfig.__dataclass_fields__.values()
    if field.name == "save_minutes"
)


class RandomImages(torch.utils.data.Dataset):
    """What training asks of a data set, without a file."""

    has_onehot_labels = False
    label_dim = 0
    signature = "random"

    def __init__(self, resolution, channels):
        self.resolution, self.num_channels = resolution, channels
        self.image_shape = [channels, resolution, resolution]
        self._images = np.random.RandomState(0).randint(0, 256, [64, *self.image_shape], np.uint8)
        self.raw_labels = np.zeros([64, 0], np.float32)

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return self._images[index], self.get_label(index)

    def get_label(self, index):
        """No label."""
        return self.raw_labels[index]


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--resolution", default=32, show_default=True, help="Of the images, pixels")
@click.option("--channels", default=3, show_default=True, help="Of the images")
@click.option("--seconds", default=20.0, show_default=True, help="Length of a block")
@click.option("--blocks", default=4, show_default=True, help="Of each kind")
@click.option("--save", type=Path, help="Write the numbers to this JSON file")
@click.pass_context
def main(context, resolution, channels, seconds, blocks, save):
    """Measure and print; other options are those of train.py."""
    arguments = ["--data=random", "--workers=0", *context.args]
    parsed = train.main.make_context("train.py", arguments).params
    given = {name: parsed[name] for name in parsed if parsed[name] is not None}
    for name in ("outdir", "dry_run", "restart", "metrics"):
        given.pop(name, None)
    config = TrainingConfig.from_options(machine_settings(given), resolution=resolution)
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk, not in memory
        run = TrainingRun(config, RandomImages(resolution, channels), Path(folder))
        with run.reporter, run.data:
            run.enter(run.due_stage())
            measure(run, seconds / 4, saving=False)
            measured = {False: [], True: []}
            for _ in range(blocks):
                for saving, results in measured.items():
                    results.append(measure(run, seconds, saving))
        state_bytes = find_states(folder)[0].path.stat().st_size
    report = summary(config, measured, seconds, state_bytes) | {"options": context.args}
    click.echo(json.dumps(report, indent=1))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n")


def measure(run, seconds, saving):
    """Train for some time; returns (seconds an iteration, seconds that a save held it up)."""
    cuda = run.data._device.type == "cuda"
    start, iterations, pause = time.perf_counter(), 0, 0.0
    while time.perf_counter() - start < seconds or run.writer.busy:
        run.iterate()
        iterations += 1
        if cuda:
            torch.cuda.synchronize()
        if saving and iterations == 1:
            before = time.perf_counter()
            run.save_state()
            pause = time.perf_counter() - before
    spent = time.perf_counter() - start
    run.writer.wait()
    return spent / iterations, pause


def summary(config, measured, seconds, state_bytes):
    """Medians, and shares of training time."""
    plain = statistics.median(value for value, _ in measured[False])
    saving = statistics.median(value for value, _ in measured[True])
    pause = statistics.median(pause for _, pause in measured[True])
    lost = (saving / plain - 1) * seconds  # by one save, pause included
    cuda = config.device.startswith("cuda")
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "state_mb": round(state_bytes / 1e6, 2),
        "ms_iteration_without": round(plain * 1e3, 2),
        "ms_iteration_with": round(saving * 1e3, 2),
        "ms_pause_of_a_save": round(pause * 1e3, 2),
        "percent_pause_at_one_save_in": {
            f"{seconds:g} s": round(pause / seconds * 100, 4),
            f"{DEFAULT_SECONDS:g} s (default)": round(pause / DEFAULT_SECONDS * 100, 5),
        },
        "percent_lost_in_all_at_one_save_in": {
            f"{seconds:g} s": round(lost / seconds * 100, 2),
            f"{DEFAULT_SECONDS:g} s (default)": round(lost / DEFAULT_SECONDS * 100, 3),
        },
        "blocks": len(measured[True]),
    }


if __name__ == "__main__":
    main()
