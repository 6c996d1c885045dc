"""Native operators against plain PyTorch, and against a plain copy of the same bytes.

    OMP_NUM_THREADS=1 python benchmarks/ops.py --save=benchmarks/results/ops-cpu.json
    python benchmarks/ops.py --device=cuda --dtype=float16 --save=benchmarks/results/ops-cuda.json

Every number is a ratio of medians measured in turns in one run. "Bandwidth" is the bytes that the
native operator must at least read and write, per second, over what a copy of its input achieves.
Also: both formulations of modulated convolution, and the iteration of the demo.
"""

import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.random_images import RandomImages
from benchmarks.train_step import Steps, read_options
from torch_utils.devices import find_device
from torch_utils.host_memory import keep_freed_memory
from torch_utils.ops import backend
from torch_utils.ops.bias_act import bias_act
from torch_utils.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upsample2d
from training.networks import modulated_conv2d

SHAPES = {
    "cpu": ([32, 64, 8, 8], [32, 64, 16, 16], [16, 32, 32, 32], [8, 32, 64, 64], [4, 16, 128, 128]),
    "cuda": ([64, 512, 32, 32], [16, 128, 256, 256]),
}
DEMO = "--cfg=digits --gamma=2 --aug=noaug".split()
IMPLEMENTATIONS = {"ref": "ref", "native": "cuda"}

# From functions by name to the median seconds of each.
Measure = Callable[[Mapping[str, Callable[[], object]]], dict[str, float]]


@click.command()
@click.option("--device", help="cpu, cuda or cuda:N  [default: cuda where there is one]")
@click.option("--dtype", default="float32", show_default=True)
@click.option("--repeats", default=15, show_default=True, help="Measurements of each number")
@click.option("--demo/--no-demo", default=True, help="Measure the demo's iteration, too")
@click.option("--save", type=Path, help="Write the numbers to this JSON file")
def main(device: str | None, dtype: str, repeats: int, demo: bool, save: Path | None) -> None:
    """Measure and print a table."""
    target = find_device(device)
    if target.type == "cpu":  # as training does
        keep_freed_memory()
    backend.select("native", target.type)
    measure = partial(medians, target, repeats)
    rows = []
    for shape in SHAPES[target.type]:
        x = torch.randn(shape, device=target).to(getattr(torch, dtype))
        rows += [operator_row(measure, x, name, call) for name, call in operators(x).items()]
    report: dict[str, Any] = dict(machine(target), dtype=dtype, repeats=repeats, operators=rows)
    report["modulated_conv2d"] = [modulated_row(measure, target, *case) for case in MODULATED]
    if demo:
        report["demo"] = demo_ratio(repeats)
    if demo and target.type == "cpu":
        report["demo_shares"] = demo_shares()
    click.echo(text(report))
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(json.dumps(report, indent=1) + "\n")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((ln.partition(": ")[2] for ln in lines if ln.startswith("model name")), name)
    return dict(
        date=datetime.date.today().isoformat(),
        device=name,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )


def operators(x: torch.Tensor) -> dict[str, partial[torch.Tensor]]:
    """Functions (x, impl) by name: those of the networks and of ADA, and other activations."""
    f4 = setup_filter([1, 3, 3, 1], device=x.device)
    f12 = setup_filter(list(range(1, 13)), device=x.device)
    b = torch.randn(x.shape[1], device=x.device).to(x.dtype).requires_grad_()
    calls = {}
    for name, f in (("4x4", f4), ("12", f12)):
        calls[f"upfirdn2d {name} up 2"] = partial(upsample2d, f=f)
        calls[f"upfirdn2d {name} down 2"] = partial(downsample2d, f=f)
        calls[f"upfirdn2d {name}"] = partial(filter2d, f=f)
    calls["bias_act lrelu"] = partial(bias_act, b=b, act="lrelu")
    calls["bias_act lrelu clamp"] = partial(bias_act, b=b, act="lrelu", clamp=256)
    calls["bias_act linear clamp"] = partial(bias_act, b=b, clamp=256)
    for act in ("tanh", "softplus", "swish"):
        calls[f"bias_act {act}"] = partial(bias_act, b=b, act=act)
    return calls


def medians(
    device: torch.device, repeats: int, functions: Mapping[str, Callable[[], object]]
) -> dict[str, float]:
    """Median seconds of each function, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 2):
        for name, function in functions.items():
            start = now(device)
            function()
            if repeat >= 2:
                times[name].append(now(device) - start)
    return {name: statistics.median(values) for name, values in times.items()}


def now(device: torch.device) -> float:
    """Time in seconds once all work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def operator_row(
    measure: Measure, x: torch.Tensor, name: str, call: partial[torch.Tensor]
) -> dict[str, Any]:
    """One line of the table: forward and backward of an operator."""
    leaf = x.detach().requires_grad_()
    outputs = {key: call(leaf, impl=impl) for key, impl in IMPLEMENTATIONS.items()}
    dy = torch.randn_like(outputs["ref"])
    wanted = [leaf, *(value for key, value in call.keywords.items() if key == "b")]
    target = torch.empty_like(x)
    functions: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(x)}
    for key, impl in IMPLEMENTATIONS.items():
        functions[f"{key} forward"] = lambda impl=impl: call(x, impl=impl)
        functions[f"{key} backward"] = lambda key=key: torch.autograd.grad(
            outputs[key], wanted, dy, retain_graph=True
        )
    with torch.no_grad():  # of x, which has no graph
        seconds = measure({k: v for k, v in functions.items() if "backward" not in k})
    seconds |= measure({k: v for k, v in functions.items() if "backward" in k})
    moved = (x.numel() + dy.numel()) / (2 * x.numel())  # in copies of x
    return dict(
        operator=name,
        shape=list(x.shape),
        seconds=seconds,
        forward_ratio=seconds["ref forward"] / seconds["native forward"],
        backward_ratio=seconds["ref backward"] / seconds["native backward"],
        forward_bandwidth=moved * seconds["copy"] / seconds["native forward"],
    )


# Batch, input channels, output channels, size of the images, up.
MODULATED = ((32, 64, 64, 8, 1), (32, 64, 32, 16, 2), (32, 32, 32, 16, 1), (8, 64, 64, 64, 1))


def modulated_row(
    measure: Measure, device: torch.device, batch: int, c_in: int, c_out: int, size: int, up: int
) -> dict[str, Any]:
    """Grouped convolution against scaled activations: forward, and with both derivatives."""
    f = setup_filter([1, 3, 3, 1], device=device)
    x = torch.randn(batch, c_in, size // up, size // up, device=device, requires_grad=True)
    w = torch.randn(c_out, c_in, 3, 3, device=device, requires_grad=True)
    styles = torch.randn(batch, c_in, device=device, requires_grad=True)

    def forward(fused: bool) -> torch.Tensor:
        return modulated_conv2d(
            x, w, styles, up=up, padding=1, resample_filter=f, fused_modconv=fused
        )

    def twice(fused: bool) -> None:  # as path length regularisation does
        (ds,) = torch.autograd.grad(forward(fused).square().sum(), styles, create_graph=True)
        torch.autograd.grad(ds.square().sum(), [x, w, styles])

    functions = {}
    for name, fused in (("grouped", True), ("scaled", False)):
        functions[f"{name} forward"] = partial(forward, fused)
        functions[f"{name} second derivative"] = partial(twice, fused)
    seconds = measure(functions)
    ratios = {k: seconds[f"grouped {k}"] / seconds[f"scaled {k}"] for k in WHAT}
    return dict(batch=batch, c_in=c_in, c_out=c_out, size=size, up=up, seconds=seconds) | ratios


WHAT = ("forward", "second derivative")


def demo_ratio(repeats: int) -> dict[str, Any]:
    """Seconds of the demo's iteration in both stages, and what the operators of --ops=auto gain."""
    config = read_options([*DEMO, "--ops=native"], 16)
    steps = Steps(config, RandomImages(16, 1, 0))
    result = {}
    for name in steps.stages:
        times: dict[str, list[float]] = {"ref": [], "auto": []}
        for repeat in range(repeats + 2):
            for mode, values in times.items():
                backend.select(mode, steps.device.type)
                seconds = steps.iterate(name)
                parts = {part: interval for part, interval, _ in steps.parts(name)}
                if repeat >= 2:
                    values.append(sum(s / parts[part] for part, s in seconds.items()))
        seconds = {mode: statistics.median(values) for mode, values in times.items()}
        result[name] = dict(seconds=seconds, ratio=seconds["ref"] / seconds["auto"])
    return result


def demo_shares() -> dict[str, dict[str, float]]:
    """Parts of the demo's time in both stages, in plain PyTorch, that are convolutions.

    'filters' are those of upfirdn2d, known by their weights of 4x4; all others are 'networks'.
    """
    steps = Steps(read_options([*DEMO, "--ops=ref"], 16), RandomImages(16, 1, 0))
    result = {}
    for name in steps.stages:
        steps.iterate(name)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
            for _, interval, run in steps.parts(name):
                for _ in range(16 // interval):
                    run()
        seconds = dict(networks=0.0, filters=0.0)
        total = 0.0
        for event in profile.key_averages(group_by_input_shape=True):
            total += event.self_cpu_time_total
            place = {"aten::convolution": 1, "aten::convolution_backward": 2}.get(event.key)
            if place is not None:
                filters = event.input_shapes[place][2:] == [4, 4]
                seconds["filters" if filters else "networks"] += event.cpu_time_total
        result[name] = {key: value / total for key, value in seconds.items()}
    return result


def text(report: dict[str, Any]) -> str:
    """The report as lines."""
    lines = [f"{report['device']}, {report['threads']} threads, {report['dtype']}; ref / native:"]
    for row in report["operators"]:
        lines.append(
            f"{row['operator']:24} {row['shape']!s:20} forward {row['forward_ratio']:5.2f}"
            f"  backward {row['backward_ratio']:5.2f}  bandwidth {row['forward_bandwidth']:4.0%}"
        )
    lines.append("modulated_conv2d, grouped / scaled:")
    for row in report["modulated_conv2d"]:
        case = [row[k] for k in ("batch", "c_in", "c_out", "size", "up")]
        lines.append(f"{case!s:26} " + "  ".join(f"{k} {row[k]:5.2f}" for k in WHAT))
    for name, stage in report.get("demo", {}).items():
        lines.append(f"demo, {name} iteration, ref / auto: {stage['ratio']:.2f}")
    for name, shares in report.get("demo_shares", {}).items():
        parts = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        lines.append(f"convolutions in the {name} iteration, ref: {parts}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
