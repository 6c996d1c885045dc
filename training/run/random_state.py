"""The random number generators of a process, as a part of a checkpoint."""

import random

import numpy as np
import torch


def seed_all(seed):
    """Seed Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class RandomState:
    """Python's, NumPy's and PyTorch's global generators.

    Args:
        device: Training device; on CUDA its generator is one of them.
    """

    def __init__(self, device):
        self._device = device

    def state_dict(self):
        """Where all of them are, as tensors and plain values."""
        kind, keys, *rest = np.random.get_state()
        state = {
            "python": random.getstate(),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(),
        }
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return state

    def load_state_dict(self, state):
        """Put all of them where they were; the GPU's only if one was in use."""
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if self._device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self._device)
