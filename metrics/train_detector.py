"""Train a small classifier of a data set and save it as a detector for calc_metrics.py.

\b
  python -m metrics.train_detector --data=digits.zip --out=digits.pt

For images that Inception knows nothing of, or where it cannot be had. The data set needs class
labels; training takes about a minute on two cores. Results are comparable with those of the same
file only, which is why they bear its name and record its hash.
"""

import io
import os
import time
import warnings
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dnnlib.util import atomic_write
from metrics import MetricError
from metrics.sources import ImageFiles
from torch_utils.devices import find_device

__all__ = ["Classifier", "Plan", "save_detector", "train_classifier"]

_WIDTHS = (32, 64, 128)
_FEATURES = 64
_HELD_OUT = 10  # every tenth image measures accuracy and is not trained on


@dataclass(frozen=True)
class Plan:
    """How long and how to train."""

    seconds: float = 45.0
    """Stop after that long on any machine."""
    max_steps: int = 1500
    """Stop after that many steps where the machine is fast."""
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0


class Classifier(nn.Module):
    """Convolutional classifier with the calling convention of detectors.

    forward(images [N, 1 or 3, H, W], values 0..255, uint8 or float) returns probabilities [N, K]
    of the classes; with return_features the 64 activations before the last layer; with
    no_output_bias the probabilities without that layer's bias; with return_lpips a vector whose
    squared differences are a perceptual distance: the activations of all blocks, normalised at
    every place (Zhang et al. 2018, equation 1, with equal weights). Images of another size than
    those of training are resized.
    """

    def __init__(self, num_classes: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.channels, self.height, self.width = channels, height, width
        blocks, before = [], channels
        for number, after in enumerate(_WIDTHS):
            stride = 1 if number == 0 else 2
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                )
            )
            before = after
        self.blocks = nn.ModuleList(blocks)
        # Quarters of the image, so that features say where things are.
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(4 * before, _FEATURES)
        self.output = nn.Linear(_FEATURES, num_classes)

    def forward(
        self,
        images: torch.Tensor,
        return_features: bool = False,
        no_output_bias: bool = False,
        return_lpips: bool = False,
    ) -> torch.Tensor:
        """See the class."""
        x = self.prepare(images)
        if return_lpips:
            return self.places(x)
        features = self.features(x)
        if return_features:
            return features
        if no_output_bias:
            return torch.matmul(features, self.output.weight.t()).softmax(dim=1)
        return self.output(features).softmax(dim=1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [N, 64] before the last layer, of images that are prepared."""
        for block in self.blocks:
            x = block(x)
        return torch.relu(self.hidden(self.pool(x).flatten(1)))

    def places(self, x: torch.Tensor) -> torch.Tensor:
        """Activations of all blocks [N, L], of length 1 over the channels of a place."""
        parts: list[torch.Tensor] = []
        for block in self.blocks:
            x = block(x)
            unit = x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
            parts.append(unit.flatten(1) / float(x.shape[2] * x.shape[3]) ** 0.5)
        return torch.cat(parts, dim=1)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images as float32 in [-1, 1] of the size and number of channels of training."""
        x = images.to(torch.float32)
        if self.channels == 1:
            x = x.mean(dim=1, keepdim=True)
        elif x.shape[1] == 1:
            x = x.repeat(1, 3, 1, 1)
        if x.shape[2] != self.height or x.shape[3] != self.width:
            x = nn.functional.interpolate(
                x, size=(self.height, self.width), mode="bilinear", antialias=True
            )
        return x / 127.5 - 1


def train_classifier(
    images: torch.Tensor, labels: torch.Tensor, plan: Plan, progress: bool = True
) -> tuple[Classifier, float]:
    """Train on images uint8 [N, C, H, W] and class numbers int64 [N], on their device.

    Images are shifted by up to an eighth of their size, so that the network learns shapes and not
    pixels. Returns the network in eval mode and its accuracy on images held out, NaN without any.
    Does not touch the global random state.
    """
    held_out = torch.arange(len(images), device=images.device) % _HELD_OUT == _HELD_OUT - 1
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(plan.seed)
        network = Classifier(int(labels.max()) + 1, *images.shape[1:]).to(images.device)
        _fit(network, images[~held_out], labels[~held_out], plan, progress)
    network.eval().requires_grad_(False)
    if not held_out.any():
        return network, float("nan")
    parts = images[held_out].split(plan.batch)
    guesses = torch.cat([network(part).argmax(dim=1) for part in parts])
    return network, float((guesses == labels[held_out]).double().mean())


def _fit(network: Classifier, images: Any, labels: Any, plan: Plan, progress: bool) -> None:
    """AdamW with a learning rate that falls to 0 over time, or over steps if these end sooner."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.lr, weight_decay=1e-2)
    start, shift = time.monotonic(), max(images.shape[2] // 8, 1)
    batch = min(plan.batch, len(images))
    network.train()
    for step in tqdm(range(plan.max_steps), "training", disable=None if progress else True):
        passed = max((time.monotonic() - start) / plan.seconds, step / plan.max_steps)
        if passed >= 1:
            break
        optimizer.param_groups[0]["lr"] = plan.lr * (1 - passed)
        chosen = torch.randint(len(images), [batch], device=images.device)
        x = _shifted(network.prepare(images[chosen]), shift)
        logits = network.output(network.features(x))
        loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _shifted(x: torch.Tensor, shift: int) -> torch.Tensor:
    """The whole batch moved by one random offset; what comes in repeats the border."""
    down, right = torch.randint(-shift, shift + 1, [2]).tolist()
    padded = nn.functional.pad(x, [shift] * 4, mode="replicate")
    height, width = x.shape[2:]
    return padded[:, :, shift + down :, shift + right :][:, :, :height, :width]


def save_detector(network: Classifier, path: str | os.PathLike) -> None:
    """Save as TorchScript; the file appears whole or not at all. Raises OSError."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch advises other formats; published detectors are in this one.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network.cpu()), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_labelled(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images uint8 [N, C, H, W] and class numbers int64 [N]. Raises MetricError."""
    files = ImageFiles(path)
    labels = files.labels(full=True)
    if labels.ndim != 1:
        raise MetricError(f"the labels of '{path}' are vectors, not classes")
    if labels.max() < 1:
        raise MetricError(f"'{path}' has one class; a classifier needs at least two")
    images = [files.decode(index) for index in tqdm(range(len(labels)), "reading", disable=None)]
    channels = max(len(image) for image in images)
    images = [np.broadcast_to(image, (channels, *image.shape[1:])) for image in images]
    return torch.from_numpy(np.stack(images)), torch.from_numpy(labels)


@click.command(help=__doc__, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--data", required=True, metavar="PATH", help="Zip or folder with class labels")
@click.option("--out", required=True, metavar="PT", help="File to write; its name marks results")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), default=Plan.seconds,
              help="Longest time to train")  # fmt: skip
@click.option("--max-steps", type=click.IntRange(min=1), default=Plan.max_steps,
              help="Most steps to train")  # fmt: skip
@click.option("--seed", type=int, default=0, help="Seed of everything random")
@click.option("--device", metavar="NAME", help="cuda or cpu  [default: cuda where there is one]")
def main(data: str, out: str, seconds: float, max_steps: int, seed: int, device: str | None):
    """Read, train, save."""
    if not os.path.isdir(os.path.dirname(os.path.abspath(out))):
        raise click.UsageError(f"--out={out}: there is no such folder.")
    try:
        target = find_device(device)
        images, labels = read_labelled(data)
    except ValueError as error:
        raise click.ClickException(f"{error}.") from None
    plan = Plan(seconds=seconds, max_steps=max_steps, seed=seed)
    network, accuracy = train_classifier(images.to(target), labels.to(target), plan)
    try:
        save_detector(network, out)
    except OSError as error:
        raise click.ClickException(f"Cannot write --out={out}: {error.strerror}.") from None
    click.echo(
        f"Saved {out}: {int(labels.max()) + 1} classes, {_FEATURES} features, accuracy "
        f"{accuracy:.1%} on {len(images) // _HELD_OUT} images that it was not trained on"
    )


if __name__ == "__main__":
    main()
