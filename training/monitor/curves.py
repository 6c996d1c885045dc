"""Learning curves of a run, from its stats.jsonl."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.util import atomic_write

PANELS = (
    ("Scores of D (mean logit)", ("Loss/scores/real", "Loss/scores/fake")),
    ("Loss of G", ("Loss/G/loss",)),
    ("Loss of D", ("Loss/D/loss",)),
    ("Gradient norms", ("grad_norm/Gmain", "grad_norm/Dmain")),
    ("Langevin displacement (rms)", ("Coop/displacement",)),
    ("Energy gap D(real) - D(revised)", ("Coop/energy_gap",)),
    ("Regularisers", ("Loss/r1_penalty", "Loss/pl_penalty", "Loss/gradient_penalty", "Loss/zcr/D")),
    ("Diversity of G's images, real ones 1", ("Progress/diversity",)),
    ("Probability of augmentations", ("Progress/augment",)),
)
COLUMNS = 3

Tick = Mapping[str, Any]  # a line of stats.jsonl: {"num", "mean", "std"} by name


def read_stats(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of stats.jsonl as a list of dicts, in order."""
    text = (Path(run_dir) / "stats.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def stage_switch(ticks: Sequence[Tick]) -> float | None:
    """kimg at which the adversarial stage took over from a cooperative one; None if never.

    A stage ends with a tick, so this is exact.
    """
    for before, after in itertools.pairwise(ticks):
        if _mean(before, "Progress/cooperative") and not _mean(after, "Progress/cooperative"):
            return _mean(before, "Progress/kimg")
    return None


def save_curves(run_dir: str | os.PathLike) -> None:
    """Draw learning-curves.png into the run folder, the stage switch marked."""
    # Not pyplot: it would look for a display, and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ticks = read_stats(run_dir)
    kimg = [_curve_value(tick, "Progress/kimg") for tick in ticks]
    switch = stage_switch(ticks)
    panels = list(_filled_panels(ticks)) or [("Nothing was measured", {})]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4 * min(len(panels), COLUMNS), 3.25 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, min(len(panels), COLUMNS), index)
        for name, values in curves.items():
            axes.plot(kimg, values, label=name, marker=".")
        if switch is not None:
            axes.axvline(switch, color="tab:red", linestyle="--", label="stage switch")
        axes.set_title(title)
        axes.set_xlabel("kimg")
        axes.grid(alpha=0.3)
        if curves:
            axes.legend(fontsize="small")
    with atomic_write(Path(run_dir) / "learning-curves.png", durable=False) as file:
        figure.savefig(file, format="png", dpi=110)


def _filled_panels(ticks: Sequence[Tick]) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Title and {name: values} of the panels that have something to show."""
    for title, names in PANELS:
        curves = {name: [_curve_value(tick, name) for tick in ticks] for name in names}
        curves = {name: values for name, values in curves.items() if any(map(_shows, values))}
        if curves:
            yield title, curves


def _shows(value: float) -> bool:
    """Not NaN, nor the zero of what is switched off."""
    return value == value and value != 0


def _mean(tick: Tick, name: str) -> float | None:
    entry = tick.get(name)
    return None if entry is None else entry["mean"]


def _curve_value(tick: Tick, name: str) -> float:
    """Value of one curve at one tick; gradient norms stand under the name of their stage."""
    for key in (name, f"Coop/{name}", f"Loss/{name}"):
        value = _mean(tick, key)
        if value is not None:
            return value
    return float("nan")
