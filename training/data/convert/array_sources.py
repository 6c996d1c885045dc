"""Sources that hold pixel arrays: CIFAR, downsampled ImageNet, MNIST, scikit-learn's digits."""

import gzip
import os
import re
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import IO, Any, NamedTuple

import numpy as np
import PIL.Image

from dnnlib.util import first_line
from training.data.convert.image_source import ImageSource, SourceImage
from training.data.convert.pickled_arrays import load_pickled_batch
from training.data.image_files import DatasetError, FileStore, check_size, open_store
from training.data.labels import MAX_CLASSES

_NO_PLANES = "'{}': 'data' must be uint8 rows of three square planes."
_MAX_ROW_BYTES = 3 * 1024**2
_CHUNK = 4096  # images read at a time where a file can be read piecewise
_MAX_BATCH_BYTES = 4 << 30  # the largest published batch has 1.6 GB
_MAX_LABEL_BYTES = 64 << 20


class Batch(NamedTuple):
    """A named run of images and their class numbers.

    Args:
        name: What messages call it.
        images: uint8 [N, H, W] or [N, C, H, W].
        labels: Integers [N].
        first: Number of the batch's first image in messages.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    first: int = 0


class ArraySource(ImageSource):
    """A source whose images come in arrays: only the batches differ."""

    def __init__(self, path: str, labels: str = "auto") -> None:
        super().__init__(path, labels)
        self._labels = labels

    def _note_absent(self, name: str, found: set[int], count: int) -> None:
        absent = sorted(set(range(1, count + 1)) - found)
        if absent:
            self.notes.append(
                f"of {name}1..{count}, {', '.join(map(str, absent))} are not there; "
                "the archive will hold the others"
            )

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Yield the batches in order, one in memory at a time."""

    def count(self) -> int | None:
        """Return None: batches tell their length when they are read."""
        return None

    def images(self) -> Iterator[SourceImage]:
        """Yield the images of all batches."""
        for batch in self.batches():
            if len(batch.images) != len(batch.labels):
                raise DatasetError(
                    f"'{batch.name}' has {len(batch.images)} images but {len(batch.labels)} labels."
                )
            for i, (pixels, label) in enumerate(zip(batch.images, batch.labels, strict=True)):
                label = None if self._labels == "none" else int(label)
                name = f"{batch.name}[{batch.first + i}]"
                yield SourceImage(name, label, partial(_to_image, pixels))


class CifarSource(ArraySource):
    """CIFAR-10 and CIFAR-100 as published for Python: a tarball of pickles (training images)."""

    kind = "cifar-10"

    def __init__(self, path: str, labels: str = "auto") -> None:
        super().__init__(path, labels)
        contents = self._read(path)
        if not contents:
            raise DatasetError(
                f"'{path}' holds neither data_batch_1..5 (CIFAR-10) nor train (CIFAR-100); "
                "other tarballs have to be unpacked first."
            )
        label_key = "labels"
        if "train" not in contents:
            self._note_absent("data_batch_", {int(name[-1]) for name in contents}, 5)
        else:
            self.kind = "cifar-100"
            self.label_choices = ("auto", "none", "coarse")
            label_key = "coarse_labels" if labels == "coarse" else "fine_labels"
        self._batches = [
            Batch(
                name,
                _planar_images(content.get("data"), name),
                _class_numbers(content.get(label_key), name),
            )
            for name, content in sorted(contents.items())
        ]

    @classmethod
    def matches(cls, path: str) -> bool:
        """Whether path is a tarball."""
        return re.search(r"\.(tar|tgz|tar\.\w+)$", path) is not None and os.path.isfile(path)

    def count(self) -> int | None:
        """The number of training images."""
        return sum(len(batch.images) for batch in self._batches)

    def batches(self) -> Iterator[Batch]:
        """Yield data_batch_1..5, or train."""
        return iter(self._batches)

    @staticmethod
    def _read(path: str) -> dict[str, dict]:
        """Unpickle the training batches, by base name, in one pass (150 MB for CIFAR)."""
        wanted = re.compile(r"(?:.*/)?(data_batch_[1-5]|train)")
        contents = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    match = wanted.fullmatch(member.name)
                    if match is None or not member.isreg():
                        continue
                    check_size(member.name, member.size, _MAX_BATCH_BYTES)
                    if stream := tar.extractfile(member):
                        contents[match[1]] = load_pickled_batch(stream, member.name)
        except DatasetError:
            raise
        except Exception as error:  # unpacking can raise anything on damaged data
            raise _damaged(path, error) from error
        return contents


class ImageNetSource(ArraySource):
    """Downsampled ImageNet (Chrabaszcz et al., 2017): train_data_batch_1..10, pickled or .npz.

    A folder or zip holds them; labels 1..1000 become 0..999. One pickled batch is in memory at a
    time (1.6 GB at 64x64); .npz batches are read piecewise.
    """

    kind = "imagenet-downsampled"
    _NAME = re.compile(r"(?:.*/)?train_data_batch_(\d+)(\.npz)?")

    def __init__(self, path: str, labels: str = "auto") -> None:
        super().__init__(path, labels)
        self._store = open_store(path)
        self._names = self._batch_names(self._store)
        self._note_absent("train_data_batch_", set(self._names), 10)

    @classmethod
    def matches(cls, path: str) -> bool:
        """Whether path is a folder or zip that holds such batches."""
        if os.path.isfile(path) and not zipfile.is_zipfile(path):
            return False
        store = open_store(path)
        try:
            return bool(cls._batch_names(store))
        finally:
            store.close()

    @classmethod
    def _batch_names(cls, store: FileStore) -> dict[int, str]:
        """Return file names by batch number; .npz, sorted later, wins over a pickle."""
        found = filter(None, map(cls._NAME.fullmatch, store.names()))
        return {int(match[1]): match[0] for match in found}

    def batches(self) -> Iterator[Batch]:
        """Yield the batches in numerical order, large files in pieces."""
        for _, name in sorted(self._names.items()):
            try:
                yield from self._npz(name) if name.endswith(".npz") else self._pickle(name)
            except DatasetError:
                raise
            except Exception as error:  # unpacking can raise anything on damaged data
                raise _damaged(name, error) from error

    def _pickle(self, name: str) -> Iterator[Batch]:
        check_size(name, self._store.size(name), _MAX_BATCH_BYTES)
        with self._store.open(name) as stream:
            content = load_pickled_batch(stream, name)
        labels = self._from_zero(content.get("labels"), name)
        yield Batch(name, _planar_images(content.get("data"), name), labels)

    def _npz(self, name: str) -> Iterator[Batch]:
        with self._store.open(name) as stream, zipfile.ZipFile(stream) as npz:
            if not {"data.npy", "labels.npy"} <= set(npz.namelist()):
                raise DatasetError(f"'{name}' lacks the arrays 'data' and 'labels'.")
            check_size(name, npz.getinfo("labels.npy").file_size, _MAX_LABEL_BYTES)
            with npz.open("labels.npy") as member:
                numbers = np.lib.format.read_array(member, allow_pickle=False)
            labels = self._from_zero(numbers, name)
            first = 0
            with npz.open("data.npy") as member:
                for rows in _read_npy_rows(member, name):
                    images = _planar_images(rows, name)
                    yield Batch(name, images, labels[first : first + len(rows)], first)
                    first += len(rows)
            if first != len(labels):
                raise DatasetError(f"'{name}' has {first} images but {len(labels)} labels.")

    @staticmethod
    def _from_zero(labels: object, name: str) -> np.ndarray:
        labels = _class_numbers(labels, name)
        if len(labels) and not 1 <= labels.min() <= labels.max() <= 1000:
            raise DatasetError(f"'{name}' has labels outside 1..1000.")
        return labels - 1


class MnistSource(ArraySource):
    """MNIST and its kin as published: *-images-idx3-ubyte.gz, the labels file beside it.

    Images are padded with black by 2 pixels on each side, 28x28 to 32x32.
    """

    kind = "mnist"
    _ENDING = "-images-idx3-ubyte.gz"

    def __init__(self, path: str, labels: str = "auto") -> None:
        super().__init__(path, labels)
        self._path = path
        self._labels_path = path[: -len(self._ENDING)] + "-labels-idx1-ubyte.gz"
        if not os.path.isfile(self._labels_path):
            raise DatasetError(f"The labels '{self._labels_path}' are missing; put them there.")
        with gzip.open(path) as stream:
            self._shape = self._header(stream, path, 3)
        with gzip.open(self._labels_path) as stream:
            count = self._header(stream, self._labels_path, 1)[0]
        if count != self._shape[0]:
            raise DatasetError(
                f"'{self._labels_path}' has {count} labels, but '{path}' has {self._shape[0]} "
                "images; they belong to different parts of the data set."
            )

    @classmethod
    def matches(cls, path: str) -> bool:
        """Whether path is named as MNIST's image files are."""
        return path.endswith(cls._ENDING) and os.path.isfile(path)

    def count(self) -> int | None:
        """The number of images that the header promises."""
        return self._shape[0]

    def batches(self) -> Iterator[Batch]:
        """Yield the images in chunks, padded."""
        count, height, width = self._shape
        with gzip.open(self._labels_path) as stream:
            self._header(stream, self._labels_path, 1)
            labels = np.frombuffer(self._exactly(stream, count, self._labels_path), np.uint8)
        name = os.path.basename(self._path)
        with gzip.open(self._path) as stream:
            self._header(stream, self._path, 3)
            for first in range(0, count, _CHUNK):
                size = min(_CHUNK, count - first)
                pixels = self._exactly(stream, size * height * width, self._path)
                images = np.frombuffer(pixels, np.uint8).reshape(size, height, width)
                images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
                yield Batch(name, images, labels[first : first + size], first)

    def _header(self, stream: gzip.GzipFile, path: str, rank: int) -> tuple[int, ...]:
        """Read an IDX header: two zero bytes, type 8 (uint8), rank, then rank big-endian sizes."""
        if self._exactly(stream, 4, path) != bytes((0, 0, 8, rank)):
            raise DatasetError(f"'{path}' is no IDX file of {rank}-dimensional bytes.")
        return tuple(np.frombuffer(self._exactly(stream, 4 * rank, path), ">u4").tolist())

    @staticmethod
    def _exactly(stream: gzip.GzipFile, size: int, path: str) -> bytes:
        try:
            data = stream.read(size)
        except Exception as error:  # unpacking can raise anything on damaged data
            raise _damaged(path, error) from error
        if len(data) != size:
            raise DatasetError(f"'{path}' is too short; download it again.")
        return data


class DigitsSource(ArraySource):
    """The 1797 handwritten digits that come with scikit-learn: real 8x8 grey images, 10 classes."""

    kind = "digits"
    default_size = 16

    def __init__(self, path: str = "digits", labels: str = "auto") -> None:
        super().__init__(path, labels)
        try:
            from sklearn.datasets import load_digits  # slow to import, needed here only
        except ImportError as error:
            raise DatasetError(
                "--source=digits needs scikit-learn: pip install scikit-learn"
            ) from error
        digits: Any = load_digits()
        # Values are counts of dark pixels in 4x4 blocks, 0..16.
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        self._batch = Batch("digits", pixels, digits.target)

    @classmethod
    def matches(cls, path: str) -> bool:
        """Whether the word itself is given; a folder of that name is "./digits"."""
        return path == "digits"

    def count(self) -> int | None:
        """The number of images."""
        return len(self._batch.images)

    def batches(self) -> Iterator[Batch]:
        """Yield all digits at once."""
        yield self._batch


def _to_image(pixels: np.ndarray) -> PIL.Image.Image:
    """Convert uint8 [H, W] or [3, H, W] to a Pillow image."""
    return PIL.Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0).copy())


def _side(length: int, name: str) -> int:
    """The side in pixels of an image that is a row of that length."""
    side = round((length / 3) ** 0.5) if 0 < length <= _MAX_ROW_BYTES else 0
    if side > 0 and length == 3 * side * side:
        return side
    raise DatasetError(_NO_PLANES.format(name))


def _planar_images(rows: object, name: str) -> np.ndarray:
    """View rows of red, green and blue planes, uint8 [N, 3*S*S], as images [N, 3, S, S]."""
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype == np.uint8:
        side = _side(rows.shape[1], name)
        return rows.reshape(-1, 3, side, side)
    raise DatasetError(_NO_PLANES.format(name))


def _class_numbers(labels: object, name: str) -> np.ndarray:
    """Check a batch's labels: one row of integers from 0 to MAX_CLASSES - 1."""
    try:
        numbers = np.asarray(labels)
    except Exception:  # ragged lists, for one
        numbers = np.zeros(())
    if numbers.ndim == 1 and numbers.dtype.kind in "iu":
        if ((numbers >= 0) & (numbers < MAX_CLASSES)).all():
            return numbers.astype(np.int64)
    raise DatasetError(f"'{name}': 'labels' must be a list of integers, 0 to {MAX_CLASSES - 1}.")


def _read_npy_rows(stream: IO[bytes], name: str) -> Iterator[np.ndarray]:
    """Read a uint8 matrix in pieces of _CHUNK rows."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran_order, dtype = read(stream)
    if len(shape) != 2 or dtype != np.uint8 or fortran_order:
        raise DatasetError(_NO_PLANES.format(name))
    _side(shape[1], name)  # before as much is read
    for first in range(0, shape[0], _CHUNK):
        size = min(_CHUNK, shape[0] - first)
        data = stream.read(size * shape[1])
        if len(data) != size * shape[1]:
            raise DatasetError(f"'{name}' is too short; download it again.")
        yield np.frombuffer(data, np.uint8).reshape(size, shape[1])


def _damaged(path: str, error: Exception) -> DatasetError:
    return DatasetError(f"'{path}' cannot be read ({first_line(error)}); download it again.")
