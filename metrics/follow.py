"""Metrics of a run while it trains."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.util import first_line
from metrics.evaluation import Evaluation, Settings
from metrics.feature_sources import FileSource, NetworkSource
from metrics.registry import parse_metrics
from metrics.report import append_result, describe, json_line, keep_best
from metrics.sources import ImageFiles
from torch_utils import distributed
from torch_utils.sampler import sampler_of

logger = logging.getLogger(__name__)


class RunMetrics:
    """Measures the generator of every snapshot, records the results and keeps the best ones.

    Opens the data set and loads the detectors.

    Args:
        names: Comma-separated metrics.
        settings: How to measure.
        data: Path of the data set.
        view: What training uses of it: `max_size`, `xflip`, `random_seed`.

    Raises:
        MetricError: Something cannot be measured.
    """

    def __init__(self, names: str, settings: Settings, data: str, **view: Any) -> None:
        self._metrics = parse_metrics(names)
        self._files = ImageFiles(data, **view)
        self._settings = settings
        self._evaluation = Evaluation(FileSource(self._files), self._settings)
        with distributed.alone():  # rank 0 alone makes one of these
            self._evaluation.load_detectors(self._metrics)
        self._labels: dict[bool, np.ndarray] | None = None

    def __call__(self, G_ema: torch.nn.Module, snapshot: Path) -> dict[str, float]:
        """Measure a generator.

        Args:
            G_ema: It.
            snapshot: The file in the run folder that it was just saved as.

        Returns:
            The numbers by name; {} and a warning where they cannot be had, since training is worth
            more than its measurement.
        """
        try:
            with distributed.alone():  # the other processes wait until it is done
                return self._measure(G_ema, snapshot)
        except Exception as error:  # whatever it is, training goes on
            logger.warning("No metrics of %s: %s", snapshot.name, first_line(error))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # outside of the handler, where the error's frames are gone
        return {}

    def _measure(self, G_ema: torch.nn.Module, snapshot: Path) -> dict[str, float]:
        sampler = sampler_of(G_ema)
        if sampler.c_dim > 0 and self._labels is None:
            self._labels = {full: self._files.labels(full) for full in (True, False)}
        seed, noise_mode = self._settings.seed, self._settings.noise_mode
        generated = NetworkSource(sampler, self._labels, seed, noise_mode)
        numbers = {}
        for result in self._evaluation.measure(self._metrics, generated) or []:
            for line in describe(result, histograms=False):
                logger.info("%s: %s", snapshot.name, line)
            line = json_line(result, str(snapshot), snapshot.parent)
            append_result(snapshot.parent, result, line)
            keep_best(snapshot.parent, result, snapshot)
            numbers |= {k: v for k, v in result.values.items() if isinstance(v, int | float)}
        return numbers
