"""Images per second that the loader delivers, with and without decoded images (--cache).

    python benchmarks/image_cache.py --resolution=32 --workers=1 --save=results.json

Makes an archive of random images of smooth colours, as PNGs, and reads it in random order, in
alternating blocks, so that a noisy machine is the same for both.
"""

import datetime
import io
import json
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import PIL.Image
import torch

from benchmarks.train_step import processor
from training.data.data_loader import RealImages
from training.data.image_cache import cache_images
from training.dataset import ImageFolderDataset
from training.settings.config import TrainingConfig, make_config


@click.command()
@click.option("--resolution", default=32, show_default=True)
@click.option("--count", default=5000, show_default=True, help="Images")
@click.option("--workers", default=1, show_default=True)
@click.option("--blocks", default=5, show_default=True, help="Of each kind")
@click.option("--save", type=Path, help="Write the numbers to this JSON file")
def main(resolution: int, count: int, workers: int, blocks: int, save: Path | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "images.zip"
        write_archive(archive, resolution, count)
        config = make_config(
            dict(data=str(archive), workers=workers, batch=64, cfg="stylegan2"),
            resolution=resolution,
        )
        plain, cached = (ImageFolderDataset(str(archive)) for _ in range(2))
        start = time.perf_counter()
        cache_images(cached, Path(folder) / "cache")
        building = time.perf_counter() - start
        rates: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(blocks):
            for name, dataset in zip(rates, (plain, cached), strict=True):
                rates[name].append(images_per_second(dataset, config, count))
    ratios = sorted(b / a for a, b in zip(*rates.values(), strict=True))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "torch": torch.__version__,
        "resolution": resolution,
        "images": count,
        "workers": workers,
        "seconds_to_build": round(building, 2),
        "images_per_second": {name: round(value) for name, value in medians.items()},
        "ratio_by_block": {
            "median": round(statistics.median(ratios), 2),
            "min": round(ratios[0], 2),
            "max": round(ratios[-1], 2),
        },
        "blocks": blocks,
    }
    click.echo(json.dumps(report, indent=1))
    if save is not None:
        save.write_text(json.dumps(report, indent=1) + "\n")


def write_archive(path: Path, resolution: int, count: int) -> None:
    """PNGs that compress about as well as photographs do."""
    rng = np.random.RandomState(0)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            small = rng.randint(0, 256, [resolution // 4, resolution // 4, 3], dtype=np.uint8)
            image = PIL.Image.fromarray(small).resize(
                [resolution] * 2, PIL.Image.Resampling.BICUBIC
            )
            encoded = io.BytesIO()
            image.save(encoded, "png")
            archive.writestr(f"{index // 1000:05d}/img{index:08d}.png", encoded.getvalue())


def images_per_second(dataset: ImageFolderDataset, config: TrainingConfig, count: int) -> float:
    """Rate after the first batch, which waits for the workers to start."""
    with RealImages(dataset, config, torch.device("cpu")) as batches:
        next(batches)
        start = time.perf_counter()
        for _ in range(count // config.batch):
            next(batches)
        return count // config.batch * config.batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
