"""How long one training iteration takes in each stage, and how much memory.

    python benchmarks/train_step.py --cfg=digits --resolution=16 --channels=1
    python benchmarks/train_step.py --cfg=cifar --gamma=0 --device=cuda --save=results.json

Takes every option of train.py that says how to train. Images are random and already in memory: no
data loading is measured. Iterations of both stages alternate, so that a noisy machine is the same
for both; each phase counts with its median, divided by its interval. The multiply-adds are those
of matrix products and convolutions, counted while one iteration runs.
"""

import datetime
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import train
from benchmarks.random_images import RandomImages
from coopinit_patch.loss import no_report
from dnnlib.errors import OptionError
from training.ema import update_ema
from training.launch.plan import machine_settings
from training.model import build_model
from training.run.device import prepare_device
from training.settings.config import TrainingConfig, make_config
from training.stages import Phase, Stage, run_phase


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--resolution", default=32, show_default=True, help="Of the images, pixels")
@click.option("--channels", default=3, show_default=True, help="Of the images")
@click.option("--classes", default=0, show_default=True, help="Length of the labels")
@click.option("--warmup", default=3, show_default=True, help="Iterations before the measurement")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Iterations measured",
)
@click.option("--save", type=Path, help="Write the numbers to this JSON file")
@click.pass_context
def main(
    context: click.Context,
    resolution: int,
    channels: int,
    classes: int,
    warmup: int,
    repeats: int,
    save: Path | None,
) -> None:
    """Measure and print both stages; other options are those of train.py."""
    images = RandomImages(resolution, channels, classes)
    try:
        config = read_options(context.args, resolution)
        steps = Steps(config, images)
    except (OptionError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    measured = {name: steps.count(name) for name in steps.stages}
    for repeat in range(warmup + repeats):
        for name, stage in measured.items():
            seconds = steps.iterate(name)
            if repeat >= warmup:
                for part, value in seconds.items():
                    stage["seconds"].setdefault(part, []).append(value)
    for name, stage in measured.items():
        stage["peak_memory_gb"] = steps.peak_memory(name)
    report = summary(config, steps, measured) | {
        "options": context.args,
        "images": {"resolution": resolution, "num_channels": channels, "label_dim": classes},
    }
    click.echo(text(report))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n")


def read_options(args: Sequence[str], resolution: int) -> TrainingConfig:
    """The `TrainingConfig` for options of train.py."""
    given = train.main.make_context("train_step.py", ["--data=none", *args]).params
    unused = ("outdir", "dry_run", "restart", "metrics")
    given = {k: value for k, value in given.items() if value is not None and k not in unused}
    settings = machine_settings(given) | {"coop_kimg": given.get("coop_kimg") or 1}
    return make_config(settings, resolution=resolution)


class MultiplyAdds(TorchDispatchMode):
    """Context that counts the multiply-adds of what runs in it, as `total`.

    PyTorch's own counter knows no groups in the gradient of a convolution's weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count it."""
        out = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func.overloadpacket in (aten.convolution, aten._convolution):
            self.total += convolution(args[0], args[1], out, transposed=args[6])
        elif func.overloadpacket is aten.convolution_backward:
            grad, x, weight, *_, transposed, _, _, mask = args
            self.total += sum(mask[:2]) * convolution(x, weight, grad, transposed)
        elif func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, out_val=out) // 2
        return out


def convolution(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, transposed: bool) -> int:
    """Multiply-adds of a convolution, with groups: every weight is used once at each place."""
    places = x if transposed else out
    return weight.numel() * len(x) * places.shape[2:].numel()


class Steps:
    """Both stages of a run over the same networks, an iteration at a time."""

    def __init__(self, config: TrainingConfig, images: RandomImages) -> None:
        self.config = config
        self.device = prepare_device(config)
        self.model = build_model(config, images, self.device, no_report)
        self.stages = {stage.name: stage for stage in self.model.stages if stage is not None}
        self.real_img = torch.rand(
            [config.batch // config.gpus, images.num_channels, *[images.resolution] * 2],
            device=self.device,
        )
        self.c = torch.zeros([len(self.real_img), images.label_dim], device=self.device)

    def parts(self, name: str) -> Iterator[tuple[str, int, Callable[[], None]]]:
        """(name, interval, function) of what one iteration of a stage is made of."""
        stage = self.stages[name]
        for phase in stage.phases:
            yield phase.name, phase.interval, partial(self.step, stage, phase)
        yield "EMA", 1, partial(update_ema, self.model.nets["G_ema"], self.model.nets["G"], 0.999)

    def step(self, stage: Stage, phase: Phase) -> None:
        """One optimizer step."""
        draw = partial(self.model.micro_batches, phase, self.real_img, self.c)
        with phase.context(draw):
            run_phase(stage, phase, draw(), no_report)

    def iterate(self, name: str) -> dict[str, float]:
        """Seconds of every part of an iteration, lazy ones included."""
        seconds = {}
        for part, _, run in self.parts(name):
            start = self.now()
            run()
            seconds[part] = self.now() - start
        return seconds

    def count(self, name: str) -> dict[str, Any]:
        """Multiply-adds of an iteration; lazy parts count with their share."""
        total = 0.0
        for _, interval, run in self.parts(name):
            with MultiplyAdds() as counter:
                run()
            total += counter.total / interval
        return {"multiply_adds": total, "seconds": {}}

    def peak_memory(self, name: str) -> float | None:
        """GiB at the peak of an iteration: of the GPU, else of the process; None: not known."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.iterate(name)
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        try:  # Linux: forget the peak so far
            Path("/proc/self/clear_refs").write_text("5")
            self.iterate(name)
            status = Path("/proc/self/status").read_text()
        except OSError:
            return None
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20

    def now(self) -> float:
        """Time in seconds once all work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def summary(
    config: TrainingConfig, steps: Steps, measured: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """All results as plain data."""
    stages = {}
    for name, stage in measured.items():
        intervals = {part: interval for part, interval, _ in steps.parts(name)}
        medians = {part: statistics.median(times) for part, times in stage["seconds"].items()}
        seconds = sum(median / intervals[part] for part, median in medians.items())
        stages[name] = dict(
            images_per_second=len(steps.real_img) / seconds,
            seconds_per_iteration=seconds,
            seconds_of_parts=medians,
            intervals=intervals,
            multiply_adds=stage["multiply_adds"],
            peak_memory_gb=stage["peak_memory_gb"],
        )
    coop, adversarial = stages["cooperative"], stages["adversarial"]
    cuda = steps.device.type == "cuda"
    return dict(
        date=datetime.date.today().isoformat(),
        device=torch.cuda.get_device_name(steps.device) if cuda else processor(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        precision=config.precision,
        stages=stages,
        measured_ratio=coop["seconds_per_iteration"] / adversarial["seconds_per_iteration"],
        predicted_ratio=coop["multiply_adds"] / adversarial["multiply_adds"],
    )


def processor() -> str:
    """Name of the processor."""
    try:  # Linux
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def text(report: dict[str, Any]) -> str:
    """The report as a small table."""
    lines = ["stage         images/s   ms/iteration   peak GiB   multiply-adds"]
    for name, stage in report["stages"].items():
        memory = stage["peak_memory_gb"]
        lines.append(
            f"{name:<12s} {stage['images_per_second']:9.1f} "
            f"{stage['seconds_per_iteration'] * 1e3:14.1f} "
            f"{'-' if memory is None else format(memory, '.2f'):>10s} "
            f"{stage['multiply_adds']:15.3g}"
        )
    lines.append(
        f"cooperative / adversarial: {report['measured_ratio']:.2f} measured, "
        f"{report['predicted_ratio']:.2f} by multiply-adds "
        f"({report['device']}, {report['threads']} threads, torch {report['torch']})"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
