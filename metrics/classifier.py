"""A small classifier as a detector: the network, its training, its file."""

import io
import logging
import os
import time
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from dnnlib.util import atomic_write
from torch_utils.image_values import normalize

logger = logging.getLogger(__name__)

_WIDTHS = (32, 64, 128)
FEATURES = 64
HELD_OUT = 10  # one image of so many measures accuracy and is not trained on


@dataclass(frozen=True)
class Plan:
    """How long and how to train."""

    steps: int = 1500
    seconds: float = float("inf")
    """Stop after that long in any case, with a warning; the result then depends on the machine."""
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0


class Classifier(nn.Module):
    """Convolutional classifier with the calling convention of detectors.

    Args:
        num_classes: Number K of classes.
        channels: Of the images of training, 1 or 3.
        height: Of these images.
        width: Of these images.
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
        self.hidden = nn.Linear(4 * before, FEATURES)
        self.output = nn.Linear(FEATURES, num_classes)

    def forward(
        self,
        images: torch.Tensor,
        return_features: bool = False,
        no_output_bias: bool = False,
        return_lpips: bool = False,
    ) -> torch.Tensor:
        """What is asked for; images of another size than those of training are resized.

        Args:
            images: [N, 1 or 3, H, W] with values in 0..255, uint8 or float.
            return_features: Return the 64 activations before the last layer.
            no_output_bias: Return the probabilities without that layer's bias.
            return_lpips: Return vectors whose squared differences are a perceptual distance: the
                activations of all blocks, normalised at every place (Zhang et al. 2018, equation
                1, with equal weights).

        Returns:
            Probabilities of the classes, float32 [N, K], or what is asked for instead, [N, D].
        """
        x = self.prepare(images)
        if return_lpips:
            return self.lpips_features(x)
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

    def lpips_features(self, x: torch.Tensor) -> torch.Tensor:
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
        return normalize(x)


def train_classifier(
    images: torch.Tensor, labels: torch.Tensor, plan: Plan, progress: bool = True
) -> tuple[Classifier, float]:
    """Train a classifier; the global random state stays as it is.

    Images are shifted by up to an eighth of their size, so that the network learns shapes and not
    pixels.

    Args:
        images: uint8 [N, C, H, W], on the device to train on.
        labels: Class numbers int64 [N], on the same device.
        plan: How long and how.
        progress: Show a progress bar.

    Returns:
        The network in eval mode, and its accuracy on images held out, NaN without any.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(plan.seed))
    held_out = (order % HELD_OUT == HELD_OUT - 1).to(images.device)
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


def _fit(
    network: Classifier, images: torch.Tensor, labels: torch.Tensor, plan: Plan, progress: bool
) -> None:
    """AdamW with a learning rate that falls to 0 over the steps."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.lr, weight_decay=1e-2)
    start, shift = time.monotonic(), max(images.shape[2] // 8, 1)
    batch = min(plan.batch, len(images))
    network.train()
    for step in tqdm(range(plan.steps), "training", disable=None if progress else True):
        if time.monotonic() - start > plan.seconds:
            logger.warning("Stopped after %d of %d steps: time is up", step, plan.steps)
            break
        optimizer.param_groups[0]["lr"] = plan.lr * (1 - step / plan.steps)
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
    """Save a network as TorchScript; the file appears whole or not at all.

    Args:
        network: Moved to the CPU.
        path: Of the file.

    Raises:
        OSError: It cannot be written.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch advises other formats; published detectors are in this one.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network.cpu()), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
