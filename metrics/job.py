"""One call of calc_metrics.py: opens both sides, in every process, and measures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

import legacy
from dnnlib.util import DownloadError, first_line, open_url
from metrics import MetricError
from metrics.evaluation import Evaluation, Result, Settings, comparison_warnings
from metrics.feature_sources import FeatureSource, FileSource, NetworkSource, open_files
from metrics.registry import find_metric
from metrics.sources import ImageFiles
from torch_utils import distributed
from training.networks import Generator

__all__ = ["Job", "run_job"]

_VIEW_TYPES = {"path": str, "max_size": int, "random_seed": int, "xflip": bool}


@dataclass(frozen=True)
class Job:
    """What to measure on what.

    network: snapshot (path or URL), or fake: folder, zip or .npz; data: data set of the snapshot,
    None: the one that it names, with the subset that it names; real: what to compare with, None:
    data; mirror: whether to add mirrored images where a metric is not "_full", None: as the
    snapshot says.
    """

    metrics: tuple[str, ...]
    network: str | None = None
    fake: str | None = None
    data: str | None = None
    real: str | None = None
    mirror: bool | None = None
    settings: Settings = Settings()


def is_snapshot(name: str) -> bool:
    """Whether a name is one of a network snapshot and not of images or features."""
    return not (Path(name).is_dir() or name.lower().endswith((".zip", ".npz")))


def run_job(job: Job) -> list[Result] | None:
    """Measure; the task of `torch_utils.spawn.run_processes`. Raises MetricError."""
    metrics = [find_metric(name) for name in job.metrics]
    device = job.settings.device
    if distributed.get_world_size() > 1:
        device = str(distributed.device_of(distributed.get_rank(), device))
    settings = replace(job.settings, device=device)
    needs_real = any(metric.num_real != 0 for metric in metrics)
    if job.network is not None:
        generated, real = _open_network(job, settings, needs_real)
    else:
        generated, real = _open_files(job, needs_real)
    if distributed.is_rank0():
        for warning in comparison_warnings(real, generated):
            click.echo(f"Warning: {warning}.", err=True)
    return Evaluation(real, settings).measure(metrics, generated)


def _open_files(job: Job, needs_real: bool) -> tuple[FeatureSource, FeatureSource | None]:
    real = job.real or job.data
    if not (needs_real and real):
        return open_files(job.fake), None
    return open_files(job.fake), open_files(real, xflip=bool(job.mirror))


def _open_network(
    job: Job, settings: Settings, needs_real: bool
) -> tuple[FeatureSource, FeatureSource | None]:
    network, view = distributed.rank0_first(lambda: _load_generator(job.network))
    if job.mirror is not None:
        view["xflip"] = job.mirror
    data, labels = None, None
    if network.c_dim > 0 or (needs_real and job.real is None):
        data = _open_data(job.data, view)
    if network.c_dim > 0:
        labels = {full: data.labels(full) for full in (True, False)}
    generated = NetworkSource(
        network.to(settings.device), labels, settings.seed, settings.noise_mode
    )
    if not needs_real:
        return generated, None
    generated.resampling = _resampling(view.get("path"))
    if job.real is not None:
        # The subset was of the snapshot's own data set, and says nothing about other images.
        return generated, open_files(job.real, xflip=view.get("xflip", False))
    return generated, FileSource(data)


def _open_data(path: str | None, view: dict[str, Any]) -> ImageFiles:
    """The data set at a path of the user's own, or the snapshot's with its subset."""
    if path is not None:
        return ImageFiles(path, xflip=view.get("xflip", False))
    if not Path(view.get("path", "")).exists() or "path" not in view:
        raise MetricError(
            f"the data set {view.get('path', 'of the network')} is not here: say by --data where "
            "its images and labels are"
        )
    return ImageFiles(**view)


def _resampling(path: str | None) -> str | None:
    """By what the images of training were resized; they may be gone or damaged by now."""
    if path is None:
        return None
    try:
        return ImageFiles(path).resampling
    except MetricError:
        return None


def _load_generator(name: str) -> tuple[Any, dict[str, Any]]:
    """G_ema of a snapshot, and its data set and what training used of it, where it says so."""
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
    return network.requires_grad_(False), _view(name, data["training_set_kwargs"] or {})


def _view(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    view = {key: kwargs[key] for key in _VIEW_TYPES if kwargs.get(key) is not None}
    for key, value in view.items():
        if type(value) is not _VIEW_TYPES[key]:
            raise MetricError(
                f"cannot use --network={name}: its training_set_kwargs have {key}={value!r}, "
                f"not {_VIEW_TYPES[key].__name__}"
            )
    return view
