"""Where the feature vectors of real and of generated images come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics import MetricError
from metrics.features import FeatureFn, Producer
from metrics.generated import GeneratedFeatures, Latents, PathLengths, label_rows
from metrics.measures.perceptual_path import PathSampling
from metrics.sources import FeatureFile, ImageFiles
from torch_utils.sampler import Sampler


@dataclass(frozen=True)
class Images:
    """Which images of a source, or points of paths."""

    count: int
    full: bool
    """Of the whole data set, not of what training used."""
    path: PathSampling | None = None
    """A walk in latent space."""


@dataclass(frozen=True)
class Output:
    """Which vectors of images: an output of the metric's standard detector, or of its stand-in."""

    standard: str
    """inception or vgg16."""
    output: str
    """features, probabilities or lpips."""


class FeatureSource(ABC):
    """A place where feature vectors come from."""

    needs_detector = True
    size: tuple[int, int] | None = None
    """(width, height) of the images, where there are any."""
    resampling: str | None = None
    """Filter by which the images were resized; None: unknown."""

    @abstractmethod
    def available(self, full: bool) -> int | None:
        """Number of images; None: as many as one likes."""

    @abstractmethod
    def distinguishes(self, full: bool) -> bool:
        """Whether the whole data set is something else than what training used."""

    @abstractmethod
    def require(self, output: str, path: PathSampling | None = None) -> None:
        """Check that there are vectors of a kind.

        Args:
            output: Of a detector.
            path: A walk in latent space, or None for images.

        Raises:
            MetricError: There are none.
        """

    @abstractmethod
    def producer(self, images: Images, feature_fns: Sequence[FeatureFn]) -> Producer:
        """Makes the vectors of these images, one for each function."""

    def identity(self, images: Images) -> dict[str, Any] | None:
        """What the vectors depend on beside the detector; None: they are not to be cached."""
        return None


class FileSource(FeatureSource):
    """Image files."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files
        self._digest: str | None = None
        self.size = files.size
        self.resampling = files.resampling

    def available(self, full: bool) -> int:
        """Number of images, mirrored ones included."""
        view = self._files.view(full)
        return len(view.indices) * (2 if view.flipped else 1)

    def distinguishes(self, full: bool) -> bool:
        """Whether a subset or mirrored images were used for training."""
        return self.available(True) != self.available(False) or self._files.view(False).flipped

    def require(self, output: str, path: PathSampling | None = None) -> None:
        """Refuse what is not of images."""
        _refuse_paths(path)

    def producer(self, images: Images, feature_fns: Sequence[FeatureFn]) -> Producer:
        """Features of the first images of the data set, in the order of their names."""
        return self._files.producer(feature_fns, self._files.view(images.full))

    def identity(self, images: Images) -> dict[str, Any]:
        """Content of the images and which of them are used."""
        if self._digest is None:
            self._digest = self._files.digest()
        view = self._files.view(images.full)
        indices = hashlib.sha256(view.indices.astype("<i8").tobytes()).hexdigest()
        return {"data": self._digest, "indices": indices, "flipped": view.flipped}


class SavedFeatureSource(FeatureSource):
    """Saved features."""

    needs_detector = False

    def __init__(self, file: FeatureFile) -> None:
        self.file = file

    def available(self, full: bool) -> int:
        """Number of vectors."""
        return len(self.file.rows)

    def distinguishes(self, full: bool) -> bool:
        """Nothing is known about training."""
        return False

    def require(self, output: str, path: PathSampling | None = None) -> None:
        """Refuse what is not of images, and probabilities where there are none."""
        _refuse_paths(path)
        if output == "probabilities" and not _are_probabilities(self.file.rows):
            raise MetricError(
                f"'{self.file.path}' holds features; this metric needs probabilities of classes"
            )

    def producer(self, images: Images, feature_fns: Sequence[FeatureFn]) -> Producer:
        """The saved vectors in their order, whatever the function."""
        return _Saved(self.file.rows, len(feature_fns))


class NetworkSource(FeatureSource):
    """Images of a generator.

    Args:
        sampler: Makes them.
        labels: Of the data set, by `full`: class numbers int64 [N] or vectors float32 [N, c_dim]
            to draw from; None for an unconditional generator.
        seed: Of latents and labels.
        noise_mode: Noise inputs of the generator: random, const or none.

    Raises:
        MetricError: The labels do not fit the generator.
    """

    def __init__(
        self, sampler: Sampler, labels: dict[bool, np.ndarray] | None, seed: int, noise_mode: str
    ) -> None:
        self._sampler, self._seed, self._noise_mode = sampler, seed, noise_mode
        self._labels = None
        if labels is not None:
            self._labels = {full: label_rows(rows, sampler.c_dim) for full, rows in labels.items()}
        self.size = (sampler.img_resolution, sampler.img_resolution)

    def available(self, full: bool) -> None:
        """As many as one likes."""
        return None

    def distinguishes(self, full: bool) -> bool:
        """Labels are drawn from the whole data set or from what training used of it."""
        labels = self._labels
        return labels is not None and not np.array_equal(labels[True], labels[False])

    def require(self, output: str, path: PathSampling | None = None) -> None:
        """A generator gives all."""

    def producer(self, images: Images, feature_fns: Sequence[FeatureFn]) -> Producer:
        """Features of generated images, or lengths of paths."""
        labels = None if self._labels is None else self._labels[images.full]
        latents = Latents(self._seed, labels)
        if images.path is not None:
            [feature_fn] = feature_fns
            return PathLengths(self._sampler, feature_fn, latents, images.path)
        return GeneratedFeatures(self._sampler, feature_fns, latents, self._noise_mode)


class _Saved:
    """Rows of an array as a producer of some kinds that are all the same."""

    def __init__(self, rows: np.ndarray, kinds: int) -> None:
        self._rows, self._kinds = rows, kinds

    def prepare(self, start: int, stop: int) -> None:
        """Nothing to do ahead."""

    def rows(self, start: int, stop: int) -> list[np.ndarray]:
        """The rows as they are."""
        return [self._rows[start:stop]] * self._kinds


def _refuse_paths(path: PathSampling | None) -> None:
    if path is not None:
        raise MetricError("path lengths need a snapshot: they are walks through latent space")


def _are_probabilities(rows: np.ndarray) -> bool:
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3))


def open_files(path: str, **view: Any) -> FeatureSource:
    """The source that a path stands for: a folder or zip of images, or a .npz of features.

    Args:
        path: Of it.
        view: What to use of images, as for `metrics.sources.ImageFiles`.

    Raises:
        MetricError: It cannot be used.
    """
    if str(path).lower().endswith(".npz"):
        return SavedFeatureSource(FeatureFile(path))
    return FileSource(ImageFiles(path, **view))


def comparison_warnings(real: FeatureSource | None, generated: FeatureSource) -> list[str]:
    """Differences between real and generated images that change results but are not the model's."""
    if real is None:
        return []
    warnings = []
    if real.size and generated.size and real.size != generated.size:
        warnings.append(
            "the real images are {}x{}, the others {}x{}: resizing alone changes results".format(
                *real.size, *generated.size
            )
        )
    if real.resampling and generated.resampling and real.resampling != generated.resampling:
        warnings.append(
            f"the real images were resized by the filter {real.resampling!r}, the others by "
            f"{generated.resampling!r}: that alone changes results"
        )
    return warnings
