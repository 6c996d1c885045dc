"""The metrics by name, as the files of `metrics/measures/` declare them.

Imports no torch: front doors check names before they start anything.

A name may carry another number of generated images than the standard one: `fid2k_full` is
`fid50k_full` with 2,000 images. So a reported name always says how many there were.
"""

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from metrics import MetricError

Values = dict[str, Any]
"""Results by suffix: a number, or a list of numbers."""

STANDARD_COUNT = 50_000
MAX_COUNT = 1_000_000  # the seeds of generated images are spaced for that many


@dataclass(frozen=True)
class Metric:
    """What a metric needs, and the function that computes it.

    compute(real, generated, settings) gets two `metrics.features.Collected` (real is None where
    num_real is 0) and `ComputeSettings`, and returns {suffix: value}; the result called "" bears
    the name of the metric itself, the others NAME_SUFFIX.
    """

    template: str
    """Name with {n} for the number of generated images."""
    compute: Callable[..., Values] = field(repr=False)
    detector: str
    """Standard detector: inception or vgg16."""
    output: str = "features"
    """What the detector is asked for: features or probabilities."""
    statistic: str = "moments"
    """What is kept of it: moments (mean and covariance) or rows (everything)."""
    num_real: int | None = None
    """At most that many real images; None: all; 0: none."""
    full: bool = False
    """Take the whole data set, whatever training used of it (subset, mirroring)."""
    num_generated: int = STANDARD_COUNT
    """Generated images."""
    count_in_name: bool = True
    """Whether the standard name says how many images are generated."""
    path: Any = None
    """A `PathSampling`, for metrics that walk through latent space instead of making images."""
    better: Mapping[str, str] = field(default_factory=dict)
    """By suffix, whether a "lower" or a "higher" value is better, where one is."""

    @property
    def name(self) -> str:
        """The name, with the number of generated images."""
        silent = not self.count_in_name and self.num_generated == STANDARD_COUNT
        count = format_count(self.num_generated)
        if not count.endswith("k") and re.search(r"{n}[0-9]", self.template):
            count += "_k"  # pr1797_k3, since pr17973 could be of 17,973 images
        return self.template.format(n="" if silent else count)

    def with_count(self, count: int) -> "Metric":
        """The same metric over another number of generated images."""
        return dataclasses.replace(self, num_generated=count)


@dataclass(frozen=True)
class ComputeSettings:
    """How a metric is computed from features; no setting changes its value but by rounding."""

    memory_bytes: int = 1 << 30
    """Bound on what blocked computations hold beside the features."""
    device: str = "cpu"
    """Where blocked computations run."""
    progress: Callable[[Iterable, str], Iterable] = lambda steps, title: steps
    """Wraps a sequence of steps in a progress bar."""


Compute = TypeVar("Compute", bound=Callable[..., Values])
_metrics: dict[str, Metric] = {}


def register(template: str, **needs: Any) -> Callable[[Compute], Compute]:
    """Decorator: the function computes a metric.

    Args:
        template: Its name, with {n} for the number of images.
        needs: Further fields of `Metric`.
    """

    def decorate(compute: Compute) -> Compute:
        metric = Metric(template=template, compute=compute, **needs)
        if metric.name in _metrics:
            raise ValueError(f"two metrics are called {metric.name}")
        _metrics[metric.name] = metric
        return compute

    return decorate


@functools.cache
def _import_measures() -> None:
    package = importlib.import_module("metrics.measures")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"metrics.measures.{module.name}")


def metric_names() -> list[str]:
    """Names of all metrics with their standard numbers of images."""
    _import_measures()
    return list(_metrics)


def find_metric(name: str) -> Metric:
    """The metric of that name, with any number of generated images.

    Raises:
        MetricError: There is none; the known names are told.
    """
    _import_measures()
    if name in _metrics:
        return _metrics[name]
    for metric in _metrics.values():
        before, after = map(re.escape, metric.template.split("{n}"))
        unit = "k|_k" if after[:1].isdigit() else "k?"
        match = re.fullmatch(f"{before}([1-9][0-9]*)({unit}){after}", name)
        if match:
            count = int(match[1]) * (1000 if match[2] == "k" else 1)
            if count > MAX_COUNT:
                raise MetricError(f"{name} asks for more than {MAX_COUNT} images")
            return metric.with_count(count)
    raise MetricError(
        f"no metric is called {name!r}; there are {', '.join(_metrics)}, and the same with other "
        "numbers of images, such as fid10k_full"
    )


def parse_metrics(text: str) -> list[Metric]:
    """Metrics of a comma-separated list, each once; "none" and "" are none.

    Raises:
        MetricError: One is not known.
    """
    names = [name.strip() for name in text.split(",")]
    if names in (["none"], [""]):
        return []
    found = {metric.name: metric for metric in map(find_metric, names)}
    return list(found.values())


def format_count(count: int) -> str:
    """50000 is 50k, 1797 is 1797."""
    return f"{count // 1000}k" if count % 1000 == 0 and count > 0 else str(count)
