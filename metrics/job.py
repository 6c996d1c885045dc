"""One call of calc_metrics.py: opens what is compared, in every process, and measures."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metrics import MetricError
from metrics.evaluation import Evaluation, Result, Settings
from metrics.feature_sources import (
    FeatureSource,
    FileSource,
    NetworkSource,
    comparison_warnings,
    open_files,
)
from metrics.registry import find_metric
from metrics.sources import ImageFiles
from torch_utils import distributed
from training.run.snapshot_file import read_sampler

_VIEW_TYPES = {"path": str, "max_size": int, "random_seed": int, "xflip": bool}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to measure on what: either `network` or `fake` is given."""

    metrics: tuple[str, ...]
    network: str | None = None
    """Snapshot: path or URL."""
    fake: str | None = None
    """Folder, zip or .npz instead of it."""
    data: str | None = None
    """Data set of the snapshot; None: the one that it names, with the subset that it names."""
    real: str | None = None
    """What to compare with; None: the data set."""
    mirror: bool | None = None
    """Add mirrored images where a metric is not "_full"; None: as the snapshot says."""
    settings: Settings = Settings()


def run_job(job: Job) -> list[Result] | None:
    """Measure; the task of `torch_utils.spawn.run_processes`.

    Returns:
        Results in the order of the metrics; None except on rank 0.

    Raises:
        MetricError: Something cannot be measured.
        SnapshotError: The snapshot cannot be used.
    """
    metrics = [find_metric(name) for name in job.metrics]
    device = job.settings.device
    if distributed.get_world_size() > 1:
        device = str(distributed.device_of(distributed.get_rank(), device))
    settings = replace(job.settings, device=device)
    needs_real = any(metric.num_real != 0 for metric in metrics)
    if job.network is not None:
        generated, real = _open_network(job.network, job, settings, needs_real)
    elif job.fake is not None:
        generated, real = _open_files(job.fake, job, needs_real)
    else:
        raise ValueError("a job needs a network or what stands in for its images")
    if distributed.is_rank0():
        for warning in comparison_warnings(real, generated):
            logger.warning("Warning: %s.", warning)
    return Evaluation(real, settings).measure(metrics, generated)


def _open_files(
    fake: str, job: Job, needs_real: bool
) -> tuple[FeatureSource, FeatureSource | None]:
    real = job.real or job.data
    if not (needs_real and real):
        return open_files(fake), None
    return open_files(fake), open_files(real, xflip=bool(job.mirror))


def _open_network(
    name: str, job: Job, settings: Settings, needs_real: bool
) -> tuple[FeatureSource, FeatureSource | None]:
    option, device = f"--network={name}", torch.device(settings.device)
    sampler, kwargs = distributed.rank0_first(lambda: read_sampler(name, option, device))
    view = _view(option, kwargs or {})
    if job.mirror is not None:
        view["xflip"] = job.mirror
    data, labels = None, None
    if sampler.c_dim > 0 or (needs_real and job.real is None):
        data = _open_data(job.data, view)
        if sampler.c_dim > 0:
            labels = {full: data.labels(full) for full in (True, False)}
    generated = NetworkSource(sampler, labels, settings.seed, settings.noise_mode)
    if not needs_real:
        return generated, None
    generated.resampling = _resampling(view.get("path"))
    if job.real is not None:
        # The subset was of the snapshot's own data set, and says nothing about other images.
        return generated, open_files(job.real, xflip=view.get("xflip", False))
    assert data is not None, "it is opened wherever real images are needed"
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


def _view(option: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The data set of a snapshot and what training used of it, where it says so."""
    view = {key: kwargs[key] for key in _VIEW_TYPES if kwargs.get(key) is not None}
    for key, value in view.items():
        if type(value) is not _VIEW_TYPES[key]:
            raise MetricError(
                f"cannot use {option}: its training_set_kwargs have {key}={value!r}, "
                f"not {_VIEW_TYPES[key].__name__}"
            )
    return view
