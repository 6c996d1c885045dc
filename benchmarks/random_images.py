"""A data set without a file, for benchmarks."""

import numpy as np
import torch


class RandomImages(torch.utils.data.Dataset):
    """What training asks of a data set: random images uint8 [C, H, W], and labels of zeros."""

    has_onehot_labels = False
    signature = "random"

    def __init__(self, resolution: int, channels: int, label_dim: int = 0) -> None:
        self.resolution, self.num_channels, self.label_dim = resolution, channels, label_dim
        self.image_shape = [channels, resolution, resolution]
        self._images = np.random.RandomState(0).randint(0, 256, [64, *self.image_shape], np.uint8)
        self.raw_labels = np.zeros([64, label_dim], np.float32)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self._images[index], self.get_label(index)

    def get_label(self, index: int) -> np.ndarray:
        """Zeros."""
        return self.raw_labels[index]
