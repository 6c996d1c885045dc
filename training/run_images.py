"""Grids of real and generated images of a run, always of the same latents and labels."""

import torch

from training.snapshot import save_image_grid, snapshot_grid


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
        self._size, self._reals, labels = snapshot_grid(dataset, seed)
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
        if self._z is None:
            shape = [len(self._labels), G_ema.z_dim]
            self._z = torch.randn(shape, generator=self._generator).to(self._device)
        batches = zip(self._z.split(self._batch), self._labels.split(self._batch), strict=True)
        images = torch.cat([G_ema(z, c, noise_mode="const") for z, c in batches])
        save_image_grid(self._run_dir / name, images, self._size)
