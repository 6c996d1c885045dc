"""Measuring: which vectors the metrics need, collected once each, and what is made of them."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from metrics import MetricError
from metrics.cache import cache_file, read_cached, write_cached
from metrics.detector import Detector, is_out_of_memory
from metrics.detectors import load_detector
from metrics.feature_sources import FeatureSource, Images, Output, SavedFeatureSource
from metrics.features import Collected, FeatureFn, collect
from metrics.registry import ComputeSettings, Metric, Values
from metrics.repeatable import repeatable
from torch_utils import distributed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to measure; detector, seed and noise_mode change a result, batch its rounding."""

    device: str = "cpu"
    detector: str | None = None
    """File or URL instead of the standard detectors."""
    seed: int = 0
    """Of latents and labels."""
    noise_mode: str = "random"
    """Noise inputs of the generator: random, const or none."""
    batch: int = 64
    """Most images a forward pass of the detector; where they do not fit, half as many."""
    memory_bytes: int = 1 << 30
    """Bound on what distances between features hold at once."""
    cache: bool = True
    """Keep statistics of data sets on disk."""
    verbose: bool = False
    """Show progress bars."""


@dataclass(frozen=True)
class Result:
    """What was measured."""

    metric: str
    """Name, with the detector's after @."""
    values: dict[str, Any]
    """By full name."""
    better: dict[str, str]
    """lower or higher, by full name, for values that have a best."""
    seconds: float
    """What it took, without what earlier metrics of the same call had collected."""
    detector: dict[str, str]
    """name, sha256 and, where there is one, source; for the record."""
    num_real: int
    num_generated: int
    processes: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    """Those that change the images: seed and noise_mode."""


class Evaluation:
    """Measures metrics against the same real images, as often as one likes.

    Statistics of the real images are kept in memory and, for image files, on disk. In several
    processes every one calls measure() with the same arguments.

    Args:
        real: Where real images come from, or None: only metrics that need none can be measured.
        settings: How to measure.
    """

    def __init__(self, real: FeatureSource | None, settings: Settings) -> None:
        self._real = real
        self._settings = settings
        self._detectors: dict[str, Detector] = {}
        self._known: _Vectors = {}  # of the real images
        self._kept: dict[tuple[Images, Output], set[str]] = {}  # which statistics of them
        self._warned: set[str] = set()  # names of metrics
        show = settings.verbose and distributed.is_rank0()
        self._progress = progress_bars(show)

    def measure(self, metrics: Sequence[Metric], generated: FeatureSource) -> list[Result] | None:
        """Measure; images that several metrics need are made once.

        Args:
            metrics: What to measure.
            generated: Where the images come from that are compared with the real ones.

        Returns:
            Results in the order of the metrics; None except on rank 0.

        Raises:
            MetricError: Before anything is computed, where one of the sources lacks what a metric
                needs; later, for images that are damaged or not finite.
        """
        plan = [_needs(metric, self._real, generated) for metric in metrics]
        for need in plan:
            if any(source.needs_detector for source in self._sources(need, generated)):
                self.load_detectors([need.metric])
        wanted: _Wanted = {"real": {}, "generated": {}}
        for need in plan:
            for role, images in need.images():
                outputs = wanted[role].setdefault(images, {})
                outputs.setdefault(need.output, set()).add(need.metric.statistic)
        try:
            with repeatable(self._settings.device):
                return self._measure(plan, wanted, generated)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MetricError(
                f"not enough memory on {self._settings.device}: end what else uses it, or measure "
                "on another device"
            ) from error

    def _measure(
        self, plan: "list[_Need]", wanted: "_Wanted", generated: FeatureSource
    ) -> list[Result] | None:
        made: _Vectors = {}
        taken = []
        for need in plan:
            start = time.monotonic()
            if (need.generated, need.output) not in made:
                outputs = wanted["generated"][need.generated]
                made |= self._collect(generated, need.generated, outputs)
            if need.real is not None:
                self._collect_real(need.real, wanted["real"][need.real])
            taken.append(time.monotonic() - start)
        if not distributed.is_rank0():
            return None  # computing is for one, and the others need not wait for it
        return [
            self._compute(need, made, generated, seconds)
            for need, seconds in zip(plan, taken, strict=True)
        ]

    def _compute(
        self, need: "_Need", made: "_Vectors", generated: FeatureSource, collecting: float
    ) -> Result:
        start = time.monotonic()
        settings = ComputeSettings(
            self._settings.memory_bytes, self._settings.device, self._progress
        )
        vectors = _of_first(made, need.generated, need.output)
        real = None if need.real is None else _of_first(self._known, need.real, need.output)
        if real is not None:
            _require_equal_width(real, vectors)
            self._warn_of_few(need.metric, real, vectors)
        values = need.metric.compute(real, vectors, settings)
        return self._result(need, values, generated, collecting + time.monotonic() - start)

    def _warn_of_few(self, metric: Metric, real: Collected, generated: Collected) -> None:
        """Say once when a covariance of too few images is singular."""
        if metric.statistic != "moments" or metric.name in self._warned:
            return
        count, width = min(real.count, generated.count), real.width
        if count < width:
            self._warned.add(metric.name)
            logger.warning(
                "%s: %d images are fewer than the %d features, which makes the distance too large; "
                "compare it with those of as many images only",
                metric.name,
                count,
                width,
            )

    def _collect_real(self, images: Images, outputs: dict[Output, set[str]]) -> None:
        """Put vectors of real images among the known ones, from the cache where it has them."""
        unknown = {
            output: wanted
            for output, wanted in outputs.items()
            if not wanted <= self._kept.get((images, output), set())
        }
        if not unknown:
            return
        paths = self._cache_files(images, unknown) if distributed.is_rank0() else {}
        found = {output: read_cached(path, unknown[output]) for output, path in paths.items()}
        cached = distributed.broadcast([output for output in found if found[output] is not None])
        self._known |= {(images, output): found.get(output) for output in cached}
        missing = {output: wanted for output, wanted in unknown.items() if output not in cached}
        if missing:
            made = self._collect(self._required_real(), images, missing)
            self._known |= made
            for output in missing:
                if output in paths:
                    write_cached(paths[output], _of_first(made, images, output))
        self._kept |= {(images, output): wanted for output, wanted in unknown.items()}

    def _cache_files(self, images: Images, outputs: dict[Output, set[str]]) -> dict[Output, Path]:
        identity = self._required_real().identity(images)
        if identity is None or not self._settings.cache:
            return {}
        return {
            output: cache_file(
                {
                    **identity,
                    "detector": self._detectors[output.standard].sha256,
                    "output": output.output,
                    "count": images.count,
                    "statistics": sorted(wanted),
                }
            )
            for output, wanted in outputs.items()
        }

    def _collect(
        self, source: FeatureSource, images: Images, outputs: dict[Output, set[str]]
    ) -> "_Vectors":
        feature_fns = [
            self._feature_fn(output) if source.needs_detector else _no_detector
            for output in outputs
        ]
        found = collect(
            source.producer(images, feature_fns),
            images.count,
            list(outputs.values()),
            progress=self._progress,
            title="real images" if source is self._real else "generated images",
        )
        if found is None:
            return {(images, output): None for output in outputs}
        return {(images, output): item for output, item in zip(outputs, found, strict=True)}

    def _feature_fn(self, output: Output) -> FeatureFn:
        detector = self._detectors[output.standard]
        return partial(detector, output=output.output, batch=self._settings.batch)

    def load_detectors(self, metrics: Sequence[Metric]) -> None:
        """Load the detectors of these metrics, which measure() otherwise does.

        Raises:
            MetricError: One cannot be had, or lacks an output that a metric needs.
        """
        for metric in metrics:
            if metric.detector not in self._detectors:
                load = partial(
                    load_detector,
                    metric.detector,
                    self._settings.detector,
                    torch.device(self._settings.device),
                )
                self._detectors[metric.detector] = distributed.rank0_first(load)
            self._detectors[metric.detector].require_output(metric.output)

    def _sources(self, need: "_Need", generated: FeatureSource) -> list[FeatureSource]:
        return [generated] if need.real is None else [generated, self._required_real()]

    def _required_real(self) -> FeatureSource:
        assert self._real is not None, "_needs() refuses metrics that lack real images"
        return self._real

    def _result(
        self, need: "_Need", values: Values, generated: FeatureSource, seconds: float
    ) -> Result:
        label, detector = self._detector_label(need.metric, self._sources(need, generated))
        base = need.metric.with_count(need.generated.count).name
        names = {suffix: f"{base}_{suffix}{label}" if suffix else base + label for suffix in values}
        return Result(
            metric=base + label,
            values={names[suffix]: value for suffix, value in values.items()},
            better={names[suffix]: sign for suffix, sign in need.metric.better.items()},
            seconds=seconds,
            detector=detector,
            num_real=need.real.count if need.real else 0,
            num_generated=need.generated.count,
            processes=distributed.get_world_size(),
            settings={"seed": self._settings.seed, "noise_mode": self._settings.noise_mode},
        )

    def _detector_label(
        self, metric: Metric, sources: list[FeatureSource]
    ) -> tuple[str, dict[str, str]]:
        """What follows the metric's name, and the detector for the record."""
        files = [source.file for source in sources if isinstance(source, SavedFeatureSource)]
        if files:  # nothing here vouches for who made them
            hashes = ",".join(f"file:{file.sha256}" for file in files)
            return "@features", {"name": "features", "sha256": hashes}
        detector = self._detectors[metric.detector]
        name = detector.name or metric.detector
        label = f"@{detector.name}" if detector.name else ""
        return label, {"name": name, "sha256": detector.sha256, "source": detector.source}


_Vectors = dict[tuple[Images, Output], Collected | None]  # None except on rank 0
_Wanted = dict[str, dict[Images, dict[Output, set[str]]]]  # by role: which statistics of what


@dataclass(frozen=True)
class _Need:
    """What one metric asks of real and generated images."""

    metric: Metric
    output: Output
    generated: Images
    real: Images | None

    def images(self) -> Iterator[tuple[str, Images]]:
        """The images with their role."""
        yield "generated", self.generated
        if self.real is not None:
            yield "real", self.real


def _needs(metric: Metric, real: FeatureSource | None, generated: FeatureSource) -> _Need:
    """What a metric needs of these sources.

    Raises:
        MetricError: One of them lacks it.
    """
    generated.require(metric.output, metric.path)
    full = metric.full if generated.distinguishes(metric.full) else True
    available = generated.available(True)
    count = metric.num_generated if available is None else min(metric.num_generated, available)
    images, output = Images(count, full, metric.path), Output(metric.detector, metric.output)
    if metric.num_real == 0:
        return _Need(metric, output, images, None)
    if real is None:
        raise MetricError(f"{metric.name} needs real images: give them by --data or --real")
    real.require(metric.output)
    full = metric.full if real.distinguishes(metric.full) else True
    limits = [limit for limit in (metric.num_real, real.available(full)) if limit is not None]
    return _Need(metric, output, images, Images(min(limits), full))


def _of_first(vectors: _Vectors, images: Images, output: Output) -> Collected:
    """What rank 0, which alone calls this, has collected."""
    found = vectors[images, output]
    assert found is not None
    return found


def _no_detector(*_args: Any, **_kwargs: Any) -> np.ndarray:
    raise TypeError("saved features pass through no detector")


def _require_equal_width(real: Collected, generated: Collected) -> None:
    widths = {real.width, generated.width}
    if len(widths) > 1:
        raise MetricError(
            f"real and generated features are of different lengths ({widths}), and so of "
            "different detectors"
        )


def progress_bars(show: bool) -> Callable[[Iterable, str], Iterable]:
    """Function (steps, title) that shows a progress bar on a terminal while steps are taken."""

    def wrapped(steps: Iterable, title: str) -> Iterable:
        return tqdm(steps, title, disable=None if show else True, leave=False)

    return wrapped
