"""Images of a generator to measure, and distances along paths in its latent space.

Image i of seed s is the same in whatever batch and process it is made: its latent and label come
from `numpy.random.RandomState(s * 1000000 + i)`. The latents of seed 0 are therefore those of
`generate.py --seeds=0-...`. Noise inputs are random, as the field measures; they are drawn for
groups of `_GROUP` images from the first one's seed. Along paths each group has constant noise
of its own, drawn in the same way, so that a distance is of the step alone and no one noise decides.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metrics import MetricError
from metrics.features import FeatureFn, require_finite
from metrics.measures.perceptual_path import PathSampling
from metrics.registry import MAX_COUNT
from torch_utils.image_values import denormalize, quantize
from torch_utils.sampler import Sampler
from training.data.labels import one_hot

MAX_SEED = 2**32 // MAX_COUNT - 1
_GROUP = 4  # images synthesised at once: part of what an image with random noise is
_PATH_RESOLUTION = 256  # larger images are shrunk before their perceptual distance is taken


@dataclass(frozen=True)
class Latents:
    """Where latents and labels come from."""

    seed: int = 0
    labels: np.ndarray | None = None
    """float32 [N, c_dim] to choose from; None for an unconditional generator."""

    def draw(self, index: int, sizes: list[int]) -> tuple[list[np.ndarray], np.ndarray, float]:
        """What belongs to one index, always the same.

        Args:
            index: From 0 to MAX_COUNT - 1.
            sizes: Of the vectors.

        Returns:
            Normal vectors float32 of the given sizes, a label float32 [c_dim], and a number in
            [0, 1).
        """
        rng = np.random.RandomState(self.seed * MAX_COUNT + index)
        vectors = [rng.randn(size).astype(np.float32) for size in sizes]
        label = np.zeros(0, np.float32)
        if self.labels is not None:
            label = self.labels[rng.randint(len(self.labels))]
        return vectors, label, rng.rand()


def label_rows(labels: np.ndarray, c_dim: int) -> np.ndarray:
    """Labels of a data set as a generator takes them.

    Args:
        labels: Class numbers int64 [N] or vectors float32 [N, D].
        c_dim: Length of the generator's labels.

    Returns:
        float32 [N, c_dim].

    Raises:
        MetricError: The data set has other labels than the generator.
    """
    if labels.ndim == 1 and labels.max() < c_dim:
        return one_hot(labels, c_dim)
    if labels.ndim == 2 and labels.shape[1] == c_dim:
        return labels
    found = labels.max() + 1 if labels.ndim == 1 else labels.shape[1]
    raise MetricError(f"the network was trained with {c_dim} labels, the data set has {found}")


class _FromGenerator:
    """What images and paths have in common."""

    def __init__(self, sampler: Sampler, latents: Latents) -> None:
        self._sampler, self._latents = sampler, latents

    def prepare(self, start: int, stop: int) -> None:
        """Nothing to do ahead."""

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """Rows float32 [stop - start, D], made in groups that do not depend on the batch."""
        first = start - start % _GROUP
        with torch.inference_mode():
            parts = [self._group(i) for i in range(first, stop, _GROUP)]
            made = torch.cat(parts)[start - first : stop - first]
        return self._finish(made, start)

    def _group(self, first: int) -> torch.Tensor:
        """The _GROUP items [_GROUP, ...] from index `first` on."""
        raise NotImplementedError

    def _finish(self, made: torch.Tensor, start: int) -> list[np.ndarray]:
        """Rows of every kind from items that were made; start: index of the first."""
        raise NotImplementedError

    def _draw(
        self, first: int, vectors: int
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Of _GROUP items: some z [_GROUP, z_dim], labels [_GROUP, c_dim], numbers [_GROUP]."""
        sizes = [self._sampler.z_dim] * vectors
        device = self._sampler.device
        drawn = [self._latents.draw(i, sizes) for i in range(first, first + _GROUP)]
        latents = [np.stack([d[0][v] for d in drawn]) for v in range(vectors)]
        z = [torch.from_numpy(latent).to(device) for latent in latents]
        c = torch.from_numpy(np.stack([d[1] for d in drawn])).to(device)
        t = torch.tensor([d[2] for d in drawn], dtype=torch.float32, device=device)
        return z, c, t


class GeneratedFeatures(_FromGenerator):
    """What detectors say about generated images; a `metrics.features.Producer`.

    Args:
        sampler: Makes the images.
        feature_fns: What is said about them.
        latents: What they are made of.
        noise_mode: random, const or none.
    """

    def __init__(
        self,
        sampler: Sampler,
        feature_fns: Sequence[FeatureFn],
        latents: Latents,
        noise_mode: str = "random",
    ) -> None:
        super().__init__(sampler, latents)
        self._feature_fns, self._noise_mode = feature_fns, noise_mode

    def _group(self, first: int) -> torch.Tensor:
        [z], c, _ = self._draw(first, 1)
        torch.manual_seed(self._latents.seed * MAX_COUNT + first)  # of the noise inputs
        return self._sampler.images(self._sampler.latents(z, c), self._noise_mode)

    def _finish(self, made: torch.Tensor, start: int) -> list[np.ndarray]:
        finite = made.isfinite().flatten(1).all(dim=1).cpu().numpy()
        require_finite(np.where(finite, 0.0, np.nan), start, "generated image")
        images = quantize(made)
        return [feature_fn(images, start=start) for feature_fn in self._feature_fns]


class PathLengths(_FromGenerator):
    """Squared perceptual distance over epsilon^2 at points of paths; a Producer of float64 [n, 1].

    Args:
        sampler: Makes the images; it is not changed.
        feature_fn: Gives vectors whose squared differences are a perceptual distance.
        latents: Ends and points of the paths.
        sampling: How paths are walked.
    """

    def __init__(
        self, sampler: Sampler, feature_fn: FeatureFn, latents: Latents, sampling: PathSampling
    ) -> None:
        # A copy: its noise is drawn anew for every group.
        super().__init__(copy.deepcopy(sampler), latents)
        self._feature_fn, self._sampling = feature_fn, sampling

    def _group(self, first: int) -> torch.Tensor:
        (z0, z1), c, t = self._draw(first, 2)
        torch.manual_seed(self._latents.seed * MAX_COUNT + first)
        self._sampler.renew_noise()
        epsilon = self._sampling.epsilon
        t = torch.zeros_like(t) if self._sampling.ends else t
        images = [self._images(self._point(z0, z1, c, at)) for at in (t, t + epsilon)]
        require_finite(torch.cat(images, dim=1).cpu().numpy(), first, "generated image")
        a, b = (torch.from_numpy(self._feature_fn(x, start=first)) for x in images)
        return (a - b).double().square().sum(dim=1, keepdim=True) / epsilon**2

    def _finish(self, made: torch.Tensor, start: int) -> list[np.ndarray]:
        return [made.numpy()]

    def _point(
        self, z0: torch.Tensor, z1: torch.Tensor, c: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """w at t [n] in [0, 1] on the paths from z0 to z1."""
        if self._sampling.space == "z":
            return self._sampler.latents(slerp(z0, z1, t[:, None]), c)
        w0, w1 = self._sampler.latents(z0, c), self._sampler.latents(z1, c)
        return torch.lerp(w0, w1, t.reshape(-1, *[1] * (w0.ndim - 1)))

    def _images(self, w: torch.Tensor) -> torch.Tensor:
        """Images [n, C, h, w] with values around 0..255, not rounded: steps are minute."""
        # Noise that changed between two points, or half precision, would drown their distance.
        images = self._sampler.images(w, noise_mode="const", full_precision=True)
        size = images.shape[2]
        if self._sampling.crop and size >= 8:
            eighth = size // 8
            images = images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]
        factor = size // _PATH_RESOLUTION
        if factor > 1:
            images = torch.nn.functional.avg_pool2d(images, factor)
        return denormalize(images)


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Points of great circles.

    Args:
        a: Vectors [n, D] in whose directions they begin.
        b: Vectors [n, D] in whose directions they end.
        t: Places on them in [0, 1], [n, 1].

    Returns:
        Unit vectors [n, D].
    """
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
    cosine = (a * b).sum(dim=-1, keepdim=True).clamp(-1, 1)
    across = b - cosine * a
    across = across / across.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    angle = t * cosine.acos()
    return a * angle.cos() + across * angle.sin()
