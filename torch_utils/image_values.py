"""Between the values of image files, 0..255, and those of networks, -1..1."""

import torch


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of any shape in 0..255, uint8 or float, as float32 in [-1, 1] on their device."""
    return pixels.to(torch.float32) / 127.5 - 1


def denormalize(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] with values around 0..255, of the same dtype; not rounded, not clamped."""
    return (images + 1) * 127.5


def quantize(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as uint8 on their device: clamp(x * 127.5 + 128, 0, 255)."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
