"""Grids of real and generated images of a run, always of the same latents and labels."""

import torch

from training.monitor.diagnostics import relative_diversity
from training.snapshot import save_image_grid, snapshot_grid

DIVERSITY_SAMPLE = 64  # images


class RunImages:
    """Writes reals.png and the fakes of a run.

    Args:
        run_dir: Folder to write into.
        dataset: Source of the real images and of the labels of all grids.
        seed: Chooses images and latents.
        batch: Images a forward pass.
        device: Where the generator runs.
    """

    def __init__(self, run_dir, dataset, seed, batch, device):
        self._run_dir = run_dir
        self._batch = batch
        self._size, self._reals, labels, self.damage = snapshot_grid(dataset, seed)
        self._labels = torch.from_numpy(labels).to(device)
        self._generator = torch.Generator().manual_seed(seed)
        self._device = device
        self._z = None

    def save_reals(self):
        """Write reals.png."""
        save_image_grid(self._run_dir / "reals.png", self._reals, self._size)

    @torch.no_grad()
    def save_fakes(self, G_ema, name):
        """Write the images that `G_ema` makes now as file `name`, with constant noise."""
        save_image_grid(self._run_dir / name, self._fakes(G_ema), self._size)

    @torch.no_grad()
    def diversity(self, G):
        """`relative_diversity` of a sample of the images that `G` makes now; a float."""
        # Spread over the grid, whose rows may be classes.
        chosen = torch.linspace(0, len(self._labels) - 1, DIVERSITY_SAMPLE).long()
        return relative_diversity(self._fakes(G, chosen), self._reals[chosen]).item()

    def _fakes(self, G, chosen=slice(None)):
        z, c = self._latents(G.z_dim)[chosen], self._labels[chosen]
        images = []
        for part_z, part_c in zip(z.split(self._batch), c.split(self._batch), strict=True):
            ws = G.mapping(part_z, part_c, skip_w_avg_update=True)  # looking changes nothing
            images.append(G.synthesis(ws, noise_mode="const"))
        return torch.cat(images)

    def _latents(self, z_dim):
        """Latents of the grid, drawn when they are first needed."""
        if self._z is None:
            shape = [len(self._labels), z_dim]
            self._z = torch.randn(shape, generator=self._generator).to(self._device)
        return self._z
