"""Latents and labels of the images that a generator is to make, and batches split for memory."""

from typing import Any

import torch

from training.stages import MicroBatch


class LatentBatches:
    """Splits batches of real images into forward passes, each with latents and labels of its own.

    Args:
        config: The `TrainingConfig`.
        dataset: Labels are drawn with its frequencies.
        z_dim: Size of a latent.
        device: Where training happens.
    """

    def __init__(self, config: Any, dataset: Any, z_dim: int, device: torch.device) -> None:
        self._batch_gpu = config.batch_gpu
        self._z_dim = z_dim
        self._device = device
        self._label_dim = dataset.label_dim
        self._one_hot = dataset.has_onehot_labels
        self._labels = torch.from_numpy(dataset.raw_labels).to(device)

    def split(self, images: torch.Tensor, labels: torch.Tensor) -> list[MicroBatch]:
        """Micro-batches real_img, real_c, gen_z [n, z_dim] ~ N(0, 1), gen_c [n, c_dim].

        Args:
            images: Real images [N, C, H, W].
            labels: Their labels [N, c_dim].
        """
        gen_z = torch.randn([len(images), self._z_dim], device=self._device)
        gen_c = self._draw_labels(len(images))
        parts = (t.split(self._batch_gpu) for t in (images, labels, gen_z, gen_c))
        names = ("real_img", "real_c", "gen_z", "gen_c")
        return [dict(zip(names, part, strict=True)) for part in zip(*parts, strict=True)]

    def _draw_labels(self, count: int) -> torch.Tensor:
        """Labels [count, c_dim] drawn as one indexed tensor."""
        drawn = torch.randint(len(self._labels), [count], device=self._device)
        labels = self._labels[drawn]
        if self._one_hot:
            labels = torch.nn.functional.one_hot(labels, self._label_dim)
        return labels.to(torch.float32)
