"""What a run says while it trains: progress bar, status lines, stats.jsonl, TensorBoard."""

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dnnlib.full_disk import Journal, disk_may_be_full
from torch_utils.training_stats import TrainingStats
from training.monitor.event_file import EventFile
from training.settings.config import TrainingConfig

KIMG_PER_TICK = 4
REFRESH_SECONDS = 1.0  # reading scores for the progress bar synchronises with the GPU

logger = logging.getLogger(__name__)


def format_time(seconds: float) -> str:
    """Short text for a duration: 23s, 4m 05s, 2h 04m 05s, 1d 02h 04m."""
    delta = timedelta(seconds=round(seconds))
    minutes, s = divmod(delta.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if delta.days:
        return f"{delta.days}d {hours:02d}h {minutes:02d}m"
    if hours:
        return f"{hours}h {minutes:02d}m {s:02d}s"
    if minutes:
        return f"{minutes}m {s:02d}s"
    return f"{s}s"


class Reporter:
    """Follows one run; a context manager that ends its progress bar.

    Args:
        config: Settings of the run.
        run_dir: Folder of stats.jsonl and the TensorBoard events.
        stats: The `TrainingStats` that the run reports to; this class alone collects it.
        device: Training device.
        quiet: Only count; another process reports.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run_dir: Path,
        stats: TrainingStats,
        device: torch.device,
        quiet: bool = False,
    ) -> None:
        self._quiet = quiet
        self._config = config
        self._stats = stats
        self._timers = PhaseTimers(device)
        self._device = device
        self.tick = 0
        self._tick_nimg = 0
        self._start = self._tick_start = self._refreshed = time.monotonic()
        self._spent = self._tick_spent = 0.0  # seconds, by processes before this one
        self._maintenance = 0.0
        self._jsonl = Journal(run_dir / "stats.jsonl")
        self._events = EventFile(run_dir)
        self._open = contextlib.ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """Ticks and times so far."""
        now = time.monotonic()
        return {
            "tick": self.tick,
            "tick_nimg": self._tick_nimg,
            "spent": now - self._start,
            "tick_spent": now - self._tick_start,
            "maintenance": self._maintenance,
            "pending": self._jsonl.pending,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned; before the context is entered."""
        self.tick = state["tick"]
        self._tick_nimg = state["tick_nimg"]
        self._spent, self._tick_spent = state["spent"], state["tick_spent"]
        self._maintenance = state["maintenance"]
        self._jsonl.pending = state["pending"]

    def __enter__(self) -> "Reporter":
        self._open.enter_context(logging_redirect_tqdm())
        self._bar = self._open.enter_context(
            tqdm(
                total=self._config.kimg * 1000,
                initial=min(self._tick_nimg, self._config.kimg * 1000),
                disable=self._quiet,
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file wants few lines
                bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            )
        )
        now = time.monotonic()
        self._start, self._tick_start = now - self._spent, now - self._tick_spent
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    def timed(self, phase: str) -> contextlib.AbstractContextManager[None]:
        """Context manager that measures one phase, for Timing/PHASE."""
        return self._timers.timed(phase)

    def progress(self, nimg: int, stage: str) -> None:
        """Move the bar to `nimg` images; once a second, also show stage, speed and scores."""
        # The last batch may overshoot, and tqdm shows 0% beyond the total.
        if self._quiet:
            return
        self._bar.update(min(nimg, self._bar.total) - self._bar.n)
        now = time.monotonic()
        if now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        sec_per_kimg = (now - self._tick_start) / max(nimg - self._tick_nimg, 1) * 1000
        self._bar.set_description_str(f"{stage}, kimg {nimg / 1e3:.1f} ", refresh=False)
        self._bar.set_postfix_str(
            f"{sec_per_kimg:.1f} sec/kimg, D(real) {self._score('real')}, "
            f"D(fake) {self._score('fake')}",
            refresh=False,
        )

    def _score(self, kind: str) -> str:
        mean = self._stats.mean(f"Loss/scores/{kind}")
        return "-" if math.isnan(mean) else f"{mean:+.2f}"

    def tick_is_due(self, nimg: int) -> bool:
        """The first tick ends after one batch, every other one after `KIMG_PER_TICK`."""
        return self.tick == 0 or nimg >= self._tick_nimg + KIMG_PER_TICK * 1000

    def end_tick(
        self, nimg: int, stage: str, model_values: Mapping[str, float]
    ) -> dict[str, dict[str, float]]:
        """Write the status line, stats.jsonl and TensorBoard.

        Args:
            nimg: Images seen.
            stage: Name of the stage.
            model_values: Numbers by name that are reported, too.

        Returns:
            The collected statistics, as `TrainingStats.collect()`.
        """
        now = time.monotonic()
        kimg = nimg / 1e3
        sec = now - self._tick_start
        resources = self._resources()
        values = {
            "Progress/tick": self.tick,
            "Progress/kimg": kimg,
            "Progress/cooperative": float(stage == "cooperative"),
            **model_values,
            "Timing/total_sec": now - self._start,
            "Timing/sec_per_tick": sec,
            "Timing/sec_per_kimg": sec / max(nimg - self._tick_nimg, 1) * 1e3,
            "Timing/maintenance_sec": self._maintenance,
            **{f"Timing/{name}": ms for name, ms in self._timers.milliseconds().items()},
            **{f"Resources/{name}": value for name, value in resources.items()},
        }
        if not self._quiet:
            for name, value in values.items():
                self._stats.report(name, value)
        logger.info(status_line(values))
        collected = self._stats.collect()
        if not self._quiet:
            self._write(collected, nimg)
        self.tick += 1
        self._tick_nimg = nimg
        self._tick_start = now
        self._maintenance = 0.0
        return collected

    def rolled_back(self, nimg: int) -> None:
        """Call when training was rolled back to `nimg` images."""
        self._tick_nimg = nimg
        self.maintenance()

    def metrics(self, values: Mapping[str, float], nimg: int) -> None:
        """Write numbers {name: value} that were measured of a snapshot to TensorBoard."""
        if values and not self._quiet:
            self._write_events({f"Metrics/{name}": value for name, value in values.items()}, nimg)

    def maintenance(self) -> None:
        """Call when the work between two ticks (snapshots, images) is over."""
        now = time.monotonic()
        self._maintenance += now - self._tick_start
        self._tick_start = now

    def _resources(self) -> dict[str, float]:
        cuda = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        rss = psutil.Process().memory_info().rss
        return {"cpu_mem_gb": rss / 2**30, "peak_gpu_mem_gb": peak / 2**30}

    def _write(self, collected: Mapping[str, Mapping[str, float]], nimg: int) -> None:
        # JSON has no NaN; null says the same.
        entries = {
            name: {k: v if math.isfinite(v) else None for k, v in entry.items()}
            for name, entry in collected.items()
        }
        self._jsonl.append(json.dumps(entries | {"timestamp": time.time()}) + "\n")
        self._write_events({name: entry["mean"] for name, entry in collected.items()}, nimg)

    def _write_events(self, values: Mapping[str, float], nimg: int) -> None:
        with disk_may_be_full("TensorBoard lacks a tick"):
            self._events.write(values, nimg // 1000)


def status_line(values: Mapping[str, Any]) -> str:
    """StyleGAN2-ADA's line for a tick, from the values reported at its end."""
    return " ".join(
        [
            f"tick {values['Progress/tick']:<5d}",
            f"kimg {values['Progress/kimg']:<8.1f}",
            f"time {format_time(values['Timing/total_sec']):<12s}",
            f"sec/tick {values['Timing/sec_per_tick']:<7.1f}",
            f"sec/kimg {values['Timing/sec_per_kimg']:<7.2f}",
            f"maintenance {values['Timing/maintenance_sec']:<6.1f}",
            f"cpumem {values['Resources/cpu_mem_gb']:<6.2f}",
            f"gpumem {values['Resources/peak_gpu_mem_gb']:<6.2f}",
            f"augment {values.get('Progress/augment', 0.0):.3f}",
        ]
    )


class PhaseTimers:
    """Duration of the latest run of each phase; on CUDA by events, without waiting for them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: dict[str, tuple[Any, Any]] = {}  # start and end of each phase

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Measure the body as one run of `phase`."""
        start = self._now()
        yield
        self._spans[phase] = (start, self._now())

    def milliseconds(self) -> dict[str, float]:
        """Duration of each phase that ran since the last call, in ms; waits for the GPU."""
        spans, self._spans = self._spans, {}
        if not self._cuda:
            return {phase: (end - start) * 1e3 for phase, (start, end) in spans.items()}
        torch.cuda.synchronize()
        return {phase: start.elapsed_time(end) for phase, (start, end) in spans.items()}

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
