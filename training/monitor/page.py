"""index.html of a run folder: its settings, curves and pictures on one page."""

import html
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.full_disk import disk_may_be_full
from training.monitor.curves import save_curves
from training.monitor.metric_records import metrics_by_kimg
from training.settings.family_settings import config_class

TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem }}
.curves {{ width: 100% }}
.pictures {{ display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem }}
figure {{ margin: 0 }}
figure a {{ display: block; overflow: hidden; aspect-ratio: 4 / 3 }}
figure img {{ width: 250%; image-rendering: pixelated }}
.note {{ border-left: .3rem solid #c60; padding-left: .8rem }}
td, th {{ text-align: left; padding: 0 1.5rem 0 0; font-size: .9rem }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
{notes}
<h2>Learning curves</h2>
<img class="curves" src="learning-curves.png" alt="learning curves">
{metrics}
<h2>Pictures</h2>
<p>A part of each; click to see all of it.</p>
<div class="pictures">
{pictures}
</div>
<details><summary>Settings</summary><table>{settings}</table></details>
</body></html>
"""
METRICS = """<h2>Metrics</h2>
<table><tr><th>kimg</th>{head}</tr>
{rows}</table>"""
FIGURE = """<figure><figcaption>{title}</figcaption>
<a href="{name}"><img src="{name}" alt="{title}"></a></figure>"""


def save_page(run_dir: str | os.PathLike, notes: Iterable[str] = ()) -> None:
    """Write index.html, which refers to the pictures in the folder by relative names.

    Args:
        run_dir: The run folder.
        notes: Texts at the top, about what has gone wrong.

    Raises:
        OSError: It cannot be written.
    """
    run_dir = Path(run_dir)
    settings = json.loads((run_dir / "training_options.json").read_text())
    pictures = [("Real images", "reals.png")]
    pictures += [
        (f"Generated after {int(path.stem[5:])} kimg", path.name)
        for path in sorted(run_dir.glob("fakes[0-9]*.png"), reverse=True)
    ]
    pictures.append(("Generated before training", "fakes_init.png"))
    rows = (f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in settings.items())
    page = TEMPLATE.format(
        title=_text(run_dir.name),
        summary=_text(_summary(settings)),
        notes="\n".join(f'<p class="note">{_text(note)}</p>' for note in notes),
        metrics=_metrics_table(metrics_by_kimg(run_dir)),
        pictures="\n".join(
            FIGURE.format(title=_text(title), name=name) for title, name in pictures
        ),
        settings="".join(rows),
    )
    (run_dir / "index.html").write_text(page, encoding="utf-8")


def _metrics_table(measured: Mapping[int, Mapping[str, float]]) -> str:
    """A row a snapshot, a column a number; nothing where no metrics were measured."""
    names = list(dict.fromkeys(name for numbers in measured.values() for name in numbers))
    if not names:
        return ""
    rows = []
    for kimg, numbers in measured.items():
        cells = [f"{numbers[name]:.4g}" if name in numbers else "" for name in names]
        rows.append("".join(f"<td>{cell}</td>" for cell in [kimg, *cells]))
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    return METRICS.format(head=head, rows="".join(f"<tr>{row}</tr>\n" for row in rows))


def _summary(settings: Mapping[str, Any]) -> str:
    coop = min(settings["coop_kimg"], settings["kimg"])
    adversarial = settings["kimg"] - coop
    stages = [f"{coop} kimg of cooperative initialisation"] if coop else []
    stages += [f"{adversarial} kimg of adversarial training"] if adversarial else []
    size, family = settings["resolution"], config_class(settings["cfg"]).title()
    return f"{family} at {size}x{size} on {settings['data']}: {', then '.join(stages)}."


def _text(value: object) -> str:
    return html.escape(str(value))


def show_run(run_dir: Path, notes: Sequence[str]) -> None:
    """Draw the learning curves and write the page of a run.

    Args:
        run_dir: The run folder.
        notes: Warnings, and how the run was cut short.
    """
    with disk_may_be_full("no learning curves"):
        save_curves(run_dir)
        save_page(run_dir, notes)
