import json
import math
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest

from tests import tiny
from training.monitor.curves import read_stats, save_curves, stage_switch
from training.monitor.page import save_page


def tick(kimg, cooperative, **means):
    means = {"Progress/kimg": kimg, "Progress/cooperative": float(cooperative), **means}
    return {name: {"num": 1, "mean": mean, "std": 0.0} for name, mean in means.items()}


def write_run(folder, ticks, **settings):
    (folder / "training_options.json").write_text(tiny.config(**settings).to_json())
    (folder / "stats.jsonl").write_text("".join(json.dumps(t) + "\n" for t in ticks))
    return folder


TICKS = [
    tick(0.0, True, **{"Loss/G/loss": 3.0, "Coop/grad_norm/Gmain": 1.0, "Coop/displacement": 0.2}),
    tick(4.0, True, **{"Loss/G/loss": None, "Coop/grad_norm/Gmain": 2.0}),
    tick(8.0, False, **{"Loss/G/loss": 1.0, "Loss/grad_norm/Gmain": 3.0}),
]


@pytest.mark.parametrize(
    ("ticks", "expected"),
    [
        (TICKS, 4.0),
        (TICKS[:2], None),
        (TICKS[2:], None),
        ([tick(0.0, False), tick(4.0, False)], None),
    ],
)
def test_stage_switch(ticks, expected):
    assert stage_switch(ticks) == expected


def red_pixels(path):
    with PIL.Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    return int((np.abs(pixels - [214, 39, 40]).sum(axis=2) < 30).sum())  # matplotlib's tab:red


def test_curves_mark_the_switch(tmp_path):
    write_run(tmp_path, TICKS, kimg=8, coop_kimg=6)
    assert read_stats(tmp_path) == TICKS
    save_curves(tmp_path)
    marked = red_pixels(tmp_path / "learning-curves.png")
    write_run(tmp_path, TICKS[:2], kimg=8, coop_kimg=6)
    save_curves(tmp_path)
    assert marked > 500 > red_pixels(tmp_path / "learning-curves.png") == 0


def test_curves_without_anything_to_draw(tmp_path):
    write_run(tmp_path, [tick(0.0, False)], coop_kimg=0)
    save_curves(tmp_path)
    assert (tmp_path / "learning-curves.png").stat().st_size > 0


def test_gradient_norms_of_both_stages_make_one_curve(tmp_path, monkeypatch):
    drawn = {}

    def plot(axes, x, y, label, **style):
        drawn[label] = y

    monkeypatch.setattr("matplotlib.axes.Axes.plot", plot)
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda axes, **style: None)
    write_run(tmp_path, TICKS, kimg=8, coop_kimg=6)
    save_curves(tmp_path)
    assert drawn["grad_norm/Gmain"] == [1.0, 2.0, 3.0]
    assert drawn["Loss/G/loss"][::2] == [3.0, 1.0] and math.isnan(drawn["Loss/G/loss"][1])


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])


def page(tmp_path, **settings):
    write_run(tmp_path, TICKS, **settings)
    save_page(tmp_path)
    return (tmp_path / "index.html").read_text()


def test_page_shows_the_pictures_latest_first(tmp_path):
    for name in ("fakes_init", "fakes000004", "fakes000200", "reals"):
        (tmp_path / f"{name}.png").touch()
    text = page(tmp_path)
    assert Page(text).images == [
        "learning-curves.png",
        "reals.png",
        "fakes000200.png",
        "fakes000004.png",
        "fakes_init.png",
    ]
    assert "Generated after 200 kimg" in text
    assert f"<title>{tmp_path.name}</title>" in text


def test_page_escapes_what_it_quotes(tmp_path):
    text = page(tmp_path, data="<script>{x}</script>&.zip")
    assert "script" not in Page(text).tags
    assert "&lt;script&gt;{x}&lt;/script&gt;&amp;.zip" in text


@pytest.mark.parametrize(
    ("kimg", "coop_kimg", "summary"),
    [
        (8, 0, ": 8 kimg of adversarial training."),
        (8, 6, ": 6 kimg of cooperative initialisation, then 2 kimg of adversarial training."),
        (8, 9, ": 8 kimg of cooperative initialisation."),
    ],
)
def test_page_says_how_long_each_stage_was(tmp_path, kimg, coop_kimg, summary):
    text = page(tmp_path, kimg=kimg, coop_kimg=coop_kimg)
    assert f"StyleGAN2 at 8x8 on tiny.zip{summary}" in text


def test_page_lists_all_settings(tmp_path):
    text = page(tmp_path)
    for name in json.loads(tiny.config().to_json()):
        assert f"<th>{name}</th>" in text


def test_page_needs_nothing_from_elsewhere(tmp_path):
    (tmp_path / "reals.png").touch()
    assert "//" not in page(tmp_path)
