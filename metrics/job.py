"""One call of calc_metrics.py: opens both sides, in every process, and measures."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import psutil
import torch

import legacy
from dnnlib.util import DownloadError, first_line, open_url
from metrics import MetricError
from metrics.evaluation import Evaluation, Result, Settings, comparison_warnings
from metrics.registry import find_metric
from metrics.sides import FileSide, NetworkSide, Side, open_files
from metrics.sources import ImageFiles
from torch_utils.distributed import Processes, device_of
from training.networks import Generator

__all__ = ["Job", "choose_batch", "is_snapshot", "run_job"]

_BYTES_A_PIXEL = 4 * 64 * 6  # float32, 64 channels, a few layers alive at once
_DETECTOR_PIXELS = 299 * 299  # detectors bring small images to about this size
_BATCH = 64


@dataclass(frozen=True)
class Job:
    """What to measure on what.

    generated: snapshot (path or URL), folder, zip or .npz; data: data set of the snapshot, None:
    the one that it names; real: what to compare with, None: data; mirror: whether training used
    mirrored images, None: as the snapshot says; batch None: chosen for memory.
    """

    metrics: tuple[str, ...]
    generated: str
    data: str | None = None
    real: str | None = None
    mirror: bool | None = None
    batch: int | None = None
    settings: Settings = Settings()


def is_snapshot(name: str) -> bool:
    """Whether a name is one of a network snapshot and not of images or features."""
    return not (Path(name).is_dir() or name.lower().endswith((".zip", ".npz")))


def run_job(processes: Processes, job: Job) -> list[Result] | None:
    """Measure; the task of `torch_utils.distributed.run_processes`. Raises MetricError."""
    metrics = [find_metric(name) for name in job.metrics]
    device = job.settings.device
    if processes.count > 1:
        device = str(device_of(processes.rank, device))
    settings = replace(job.settings, device=device)
    needs_real = any(metric.num_real != 0 for metric in metrics)
    generated, real = _open(job, settings, needs_real)
    if processes.first:
        for warning in comparison_warnings(real, generated):
            click.echo(f"Warning: {warning}.", err=True)
    batch = job.batch or choose_batch(generated.size, device, processes.count)
    evaluation = Evaluation(real, replace(settings, batch=batch), processes)
    return evaluation.measure(metrics, generated)


def _open(job: Job, settings: Settings, needs_real: bool) -> tuple[Side, Side | None]:
    """The generated and the real side."""
    if is_snapshot(job.generated):
        return _open_network(job, settings, needs_real)
    real_path = job.real or job.data
    return open_files(job.generated), open_files(real_path) if needs_real and real_path else None


def _open_network(job: Job, settings: Settings, needs_real: bool) -> tuple[Side, Side | None]:
    network, kwargs = _load_generator(job.generated)
    mirrored = bool(kwargs.get("xflip")) if job.mirror is None else job.mirror
    subset = {name: kwargs[name] for name in ("max_size", "random_seed") if kwargs.get(name)}
    trained_on = _files_of_snapshot(kwargs.get("path"), job.data, xflip=mirrored, **subset)
    data = ImageFiles(job.data, xflip=mirrored, **subset) if job.data else trained_on
    nowhere = f"the data set {job.data or kwargs.get('path')} is not here: say by --data where"
    labels = None
    if network.c_dim > 0:
        if data is None:
            raise MetricError(f"the network is conditional, and {nowhere} its labels are")
        labels = {full: data.labels(full) for full in (True, False)}
    generated = NetworkSide(network.to(settings.device), labels, settings.seed, settings.noise_mode)
    generated.resampling = trained_on and trained_on.resampling
    if not needs_real:
        return generated, None
    if job.real is not None:
        # The subset was of the snapshot's own data set, and says nothing about other images.
        view = {} if job.real.endswith(".npz") else {"xflip": mirrored}
        return generated, open_files(job.real, **view)
    if data is None:
        raise MetricError(f"{nowhere} it is, or give images by --real")
    return generated, FileSide(data)


def _files_of_snapshot(path: str | None, instead: str | None, **view: Any) -> ImageFiles | None:
    """What the network was trained on, where it is still there; it may be damaged if not needed."""
    if path is None or not Path(path).exists():
        return None
    try:
        return ImageFiles(path, **view)
    except MetricError:
        if instead is None:
            raise
        return None


def _load_generator(name: str) -> tuple[Any, dict[str, Any]]:
    """G_ema of a snapshot and the arguments of its data set."""
    try:
        with open_url(name) as file:
            data = legacy.load_network_pkl(file)
    except DownloadError as error:
        raise MetricError(str(error)) from None
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise MetricError(f"cannot read --network={name}: {reason}") from None
    except (legacy.UnsafePickleError, ValueError) as error:
        raise MetricError(f"cannot use --network={name}: {first_line(error)}") from None
    network = data["G_ema"]
    if not isinstance(network, Generator) or network.img_channels not in (1, 3):
        raise MetricError(f"cannot use --network={name}: its G_ema makes no grey or RGB images")
    return network.requires_grad_(False), data["training_set_kwargs"] or {}


def choose_batch(size: tuple[int, int] | None, device: str, processes: int = 1) -> int:
    """Images a forward pass: as many as half of the free memory holds by a rough estimate.

    A power of two from 4 to 64. size: (width, height) of the images.
    """
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available // processes
    width, height = size or (1, 1)
    fits = free / 2 / (max(width * height, _DETECTOR_PIXELS) * _BYTES_A_PIXEL)
    return int(min(max(2 ** math.floor(math.log2(max(fits, 1))), 4), _BATCH))
