"""Train a small classifier of a data set and save it as a detector for calc_metrics.py.

\b
  python -m metrics.train_detector --data=digits.zip --out=digits.pt

For images that Inception knows nothing of, or where it cannot be had. The data set needs class
labels; training takes about a minute on two cores for small images. Results are comparable with
those of the same file only, which is why they bear its name and record its hash.
"""

import logging
import os
import sys
from typing import TYPE_CHECKING

import click

from dnnlib.command import UserCommand
from dnnlib.errors import OptionError, UserError
from metrics import MetricError

if TYPE_CHECKING:
    import torch

# torch is imported inside functions, so that --help answers at once.

_MAX_BYTES = 2 << 30  # of images, which are all held in memory


def read_labelled(path: str, seed: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Read a data set to train on: all of it, or as many images as 2 GiB hold.

    Args:
        path: Folder or zip.
        seed: Chooses the images where there are too many.

    Returns:
        Images uint8 [N, C, H, W], and class numbers int64 [N].

    Raises:
        MetricError: It cannot be read, or has no classes.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from metrics.sources import ImageFiles

    files = ImageFiles(path)
    labels = files.labels(full=True)
    if labels.ndim != 1:
        raise MetricError(f"the labels of '{path}' are vectors, not classes")
    if labels.max() < 1:
        raise MetricError(f"'{path}' has one class; a classifier needs at least two")
    width, height = files.size
    most = max(_MAX_BYTES // (3 * width * height), 2)
    if len(labels) > most:
        click.echo(f"Training on {most} of {len(labels)} images, chosen by the seed")
    chosen = np.sort(np.random.RandomState(seed).permutation(len(labels))[:most])
    images = np.empty([len(chosen), 3, height, width], np.uint8)
    grey = True
    for place, index in enumerate(tqdm(chosen, "reading", disable=None)):
        image = files.decode(int(index))
        grey = grey and len(image) == 1
        images[place] = image
    return torch.from_numpy(images[:, :1] if grey else images), torch.from_numpy(labels[chosen])


def _problem_of(out: str) -> str | None:
    """Why the file cannot be written, seen before the work."""
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        return "there is no such folder"
    if os.path.isdir(out):
        return "that is a folder; name a file in it"
    if not os.access(folder, os.W_OK):
        return "the folder cannot be written to"
    return None


@click.command(
    cls=UserCommand, help=__doc__, context_settings={"show_default": True, "max_content_width": 100}
)
@click.option("--data", required=True, metavar="PATH", help="Zip or folder with class labels")
@click.option("--out", required=True, metavar="PT", help="File to write; its name marks results")
@click.option("--steps", type=click.IntRange(min=1), default=1500, help="Steps to train")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    help="Stop after that long, with a warning, whatever is left of the steps",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    help="Seed of everything random: the same one makes the same network",
)
@click.option("--device", metavar="NAME", help="cuda or cpu  [default: cuda where there is one]")
def main(data: str, out: str, steps: int, seconds: float, seed: int, device: str | None) -> None:
    """Read, train, save."""
    problem = _problem_of(out)
    if problem is not None:
        raise OptionError(f"--out={out}: {problem}.")
    from metrics.classifier import FEATURES, HELD_OUT, Plan, save_detector, train_classifier
    from torch_utils.devices import find_device

    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    try:
        target = find_device(device)
    except ValueError as error:
        raise OptionError(f"{error}.") from error
    images, labels = read_labelled(data, seed)
    plan = Plan(steps=steps, seconds=seconds, seed=seed)
    network, accuracy = train_classifier(images.to(target), labels.to(target), plan)
    try:
        save_detector(network, out)
    except OSError as error:
        raise UserError(f"Cannot write --out={out}: {error.strerror}.") from error
    click.echo(
        f"Saved {out}: {int(labels.max()) + 1} classes, {FEATURES} features, accuracy "
        f"{accuracy:.1%} on {len(images) // HELD_OUT} images that it was not trained on"
    )


if __name__ == "__main__":
    main()
