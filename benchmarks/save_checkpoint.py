"""What saving checkpoints costs a run.

    python benchmarks/save_checkpoint.py --cfg=digits --resolution=16 --channels=1
    python benchmarks/save_checkpoint.py --cfg=cifar --gamma=0 --device=cuda --save=results.json

Takes every option of train.py that says how to train. Images are random. Blocks of the same
iterations, one with a save and one without, alternate, so that a noisy machine is the same for
both. Two costs are told apart, and given as shares of the time between two saves:

* the pause: how long the training thread waits inside a save (it compares the processes, where
  there are several, and copies what is to be saved);
* in all: how much longer the block with the save takes. That is the pause and whatever the thread
  that writes, flushes and reads back takes away from training meanwhile.
"""

import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import train
from benchmarks.random_images import RandomImages
from benchmarks.train_step import processor
from training.launch.plan import machine_settings
from training.run.checkpoint_file import find_checkpoints
from training.settings.config import TrainingConfig, make_config
from training.training_loop import iterate
from training.training_run import TrainingRun

DEFAULT_SECONDS = 60 * TrainingConfig.save_minutes


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--resolution", default=32, show_default=True, help="Of the images, pixels")
@click.option("--channels", default=3, show_default=True, help="Of the images")
@click.option("--iterations", default=16, show_default=True, help="Of a block")
@click.option("--blocks", default=8, show_default=True, help="Of each kind")
@click.option("--save", type=Path, help="Write the numbers to this JSON file")
@click.pass_context
def main(
    context: click.Context,
    resolution: int,
    channels: int,
    iterations: int,
    blocks: int,
    save: Path | None,
) -> None:
    """Measure and print; other options are those of train.py."""
    arguments = ["--data=random", "--workers=0", *context.args]
    parsed = train.main.make_context("train.py", arguments).params
    given = {name: parsed[name] for name in parsed if parsed[name] is not None}
    for name in ("outdir", "dry_run", "restart", "metrics"):
        given.pop(name, None)
    config = make_config(machine_settings(given), resolution=resolution)
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk, not in memory
        run = TrainingRun(config, RandomImages(resolution, channels), Path(folder))
        with run.reporter, run.data:
            run.enter_stage()
            measure(run, iterations, saving=True)  # to warm up
            pairs = [
                (measure(run, iterations, saving=False), measure(run, iterations, saving=True))
                for _ in range(blocks)
            ]
        checkpoint_bytes = find_checkpoints(folder)[0].path.stat().st_size
    report = summary(config, pairs, checkpoint_bytes)
    report |= {"iterations_of_a_block": iterations, "resolution": resolution}
    report |= {"options": context.args}
    click.echo(json.dumps(report, indent=1))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n")


class Block(NamedTuple):
    """Seconds of one block."""

    spent: float
    pause: float  # inside Checkpointer.save()


def measure(run: TrainingRun, iterations: int, saving: bool) -> Block:
    """Train for some iterations, the same phases in each call; maybe save after the first."""
    run.state.progress.iteration = 0
    pause = 0.0
    start = time.perf_counter()
    for iteration in range(iterations):
        iterate(run)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        if saving and iteration == 0:
            saved = time.perf_counter()
            run.checkpointer.save(run.nimg)
            pause = time.perf_counter() - saved
    spent = time.perf_counter() - start
    if run.checkpointer.busy:
        raise click.ClickException(
            "a block ends before its checkpoint is written: more --iterations"
        )
    run.checkpointer.finish()  # says whether it failed
    return Block(spent, pause)


def summary(
    config: TrainingConfig, pairs: list[tuple[Block, Block]], checkpoint_bytes: int
) -> dict[str, Any]:
    """Medians, and shares of training time."""
    plain = statistics.median(without.spent for without, _ in pairs)
    pause = statistics.median(saving.pause for _, saving in pairs)
    lost = [saving.spent - without.spent for without, saving in pairs]
    cuda = config.device.startswith("cuda")
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "state_mb": round(checkpoint_bytes / 1e6, 2),
        "seconds_of_a_block_without_save": round(plain, 3),
        "seconds_of_a_pause": round(pause, 4),
        "seconds_lost_in_all_by_a_save": round(statistics.median(lost), 3),
        "seconds_lost_in_all_by_each_save": [round(seconds, 3) for seconds in lost],
        "percent_of_training_time": {
            f"a save in {name}": {
                "pause": round(pause / seconds * 100, 4),
                "in all": round(statistics.median(lost) / seconds * 100, 3),
            }
            for name, seconds in {
                "every block": plain,
                f"{DEFAULT_SECONDS:g} s (default)": DEFAULT_SECONDS,
            }.items()
        },
        "blocks": len(pairs),
    }


if __name__ == "__main__":
    main()
