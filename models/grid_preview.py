"""Grids of real and generated images of a run, always of the same latents and labels."""

from os import PathLike
from typing import Any

import torch

from torch_utils.sampler import Sampler
from training.monitor.diagnostics import relative_diversity
from training.monitor.image_grid import save_image_grid, snapshot_grid

DIVERSITY_SAMPLE = 64  # images


class GridPreview:
    """The preview of a model that makes images of latents; fulfils `training.model.Preview`.

    Args:
        dataset: Source of the real images and of the labels of all grids.
        averaged: Makes the images that are shown.
        current: Makes those whose diversity is measured.
        seed: Chooses images and latents.
        batch: Images per forward pass.
    """

    def __init__(
        self, dataset: Any, *, averaged: Sampler, current: Sampler, seed: int, batch: int
    ) -> None:
        self._averaged, self._current = averaged, current
        self._batch = batch
        self._size, self._reals, labels, self.damage = snapshot_grid(dataset, seed)
        self._labels = torch.from_numpy(labels)
        generator = torch.Generator().manual_seed(seed)
        self._z = torch.randn([len(labels), averaged.z_dim], generator=generator)

    def save_reals(self, path: str | PathLike) -> None:
        """Write the grid of real images."""
        save_image_grid(path, self._reals, self._size)

    def save_fakes(self, path: str | PathLike) -> None:
        """Write the images that the averaged generator makes now, with constant noise."""
        save_image_grid(path, self._fakes(self._averaged), self._size)

    def diversity(self) -> float:
        """`relative_diversity` of a sample of the images that the current generator makes."""
        # Spread over the grid, whose rows may be classes.
        chosen = torch.linspace(0, len(self._labels) - 1, DIVERSITY_SAMPLE).long()
        return relative_diversity(self._fakes(self._current, chosen), self._reals[chosen]).item()

    @torch.no_grad()
    def _fakes(self, sampler: Sampler, chosen: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Images [n, C, H, W] of the chosen cells."""
        z, c = (t[chosen].to(sampler.device) for t in (self._z, self._labels))
        parts = zip(z.split(self._batch), c.split(self._batch), strict=True)
        return torch.cat([sampler.images(sampler.latents(*part)) for part in parts])
