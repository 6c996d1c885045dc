"""Every source that dataset_tool.py reads, and the choice among them. Imports no torch."""

import io
import os
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import PIL.Image

from dnnlib.util import first_line
from training.data.convert.array_sources import (
    CifarSource,
    DigitsSource,
    ImageNetSource,
    MnistSource,
)
from training.data.convert.image_source import ImageSource, SourceImage
from training.data.dataset_json import read_labels
from training.data.image_files import DatasetError, image_names, open_image, open_store
from training.data.labels import Label


class FileSource(ImageSource):
    """A folder or zip of image files.

    Labels come from dataset.json where there is one, else from the names of the folders where all
    images lie in class folders, else there are none.
    """

    kind = "files"
    label_choices = ("auto", "none", "folders")

    def __init__(self, path: str, labels: str = "auto") -> None:
        super().__init__(path, labels)
        self._store = open_store(path)
        self._names = image_names(self._store)
        if not self._names:
            raise DatasetError(f"'{path}' holds no images (PNG, JPEG, WebP, BMP, TIFF, GIF, PPM).")
        self._labels = self._find_labels(labels)

    @classmethod
    def matches(cls, path: str) -> bool:
        """Whether path is a folder or a file; a file that is no zip is refused by name later."""
        return os.path.exists(path)

    def count(self) -> int | None:
        """The number of image files."""
        return len(self._names)

    def images(self) -> Iterator[SourceImage]:
        """Yield the images sorted by name."""
        for name in self._names:
            yield SourceImage(name, self._labels.get(name), partial(open_image, self._store, name))

    def _find_labels(self, choice: str) -> dict[str, Label]:
        if choice == "none":
            return {}
        if choice == "auto" and self._store.exists("dataset.json"):
            labels = read_labels(self._store) or {}
            if labels and labels.keys().isdisjoint(self._names):
                raise DatasetError(
                    f"dataset.json in '{self._store.path}' labels none of its {len(self._names)} "
                    f"images: it names '{next(iter(labels))}', there is '{self._names[0]}'; "
                    "correct the names or add --labels=none."
                )
            return labels
        folders = class_folders(self._names)
        if choice == "folders" and folders is None:
            raise DatasetError(
                f"'{self._store.path}' has no class folders: every image must lie in one of at "
                "least two folders."
            )
        if folders is None:
            return {}
        if choice == "auto" and is_numbered_collection(self._names):
            self.notes.append(
                "the images are numbered on through their numbered folders: taken as one "
                "collection without labels (--labels=folders makes each folder a class)"
            )
            return {}
        self.class_names = sorted(set(folders.values()))
        shown = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        self.notes.append(
            f"{len(self.class_names)} classes from the folder names: {shown} "
            "(--labels=none stores no labels)"
        )
        number = {name: i for i, name in enumerate(self.class_names)}
        return {name: number[folder] for name, folder in folders.items()}


class LmdbSource(ImageSource):
    """LSUN as published: an LMDB of encoded images by key. Needs the optional package lmdb."""

    kind = "lmdb"

    def __init__(self, path: str, labels: str = "auto") -> None:
        super().__init__(path, labels)
        try:
            import lmdb  # optional extra
        except ImportError as error:
            raise DatasetError(f"Reading '{path}' needs lmdb: pip install lmdb") from error
        self._lmdb = lmdb
        self._path = path
        if not os.path.isfile(os.path.join(path, "data.mdb")):
            raise DatasetError(f"'{path}' holds no data.mdb; give an unpacked LSUN *_lmdb folder.")
        with self._open() as database:
            self._count = database.stat()["entries"]
        if self._count == 0:
            raise DatasetError(f"'{path}' is an empty database.")

    @classmethod
    def matches(cls, path: str) -> bool:
        """Whether path is a folder named *_lmdb or holding an LMDB."""
        named = path.rstrip("/\\").endswith("_lmdb")
        return os.path.isdir(path) and (named or os.path.exists(os.path.join(path, "data.mdb")))

    def count(self) -> int | None:
        """The number of records."""
        return self._count

    def images(self) -> Iterator[SourceImage]:
        """Yield the records in the order of their keys."""
        with self._open() as database, database.begin() as transaction:
            try:
                for key, value in transaction.cursor():
                    name = f"record {key.decode('ascii', 'backslashreplace')}"
                    yield SourceImage(name, None, partial(_decode, value))
            except self._lmdb.Error as error:
                raise DatasetError(f"'{self._path}' is damaged: {first_line(error)}.") from error

    def _open(self) -> Any:  # an lmdb.Environment, which cannot be named without the package
        try:
            return self._lmdb.open(self._path, readonly=True, lock=False)
        except self._lmdb.Error as error:
            reason = first_line(error)
            raise DatasetError(f"'{self._path}' is no readable LMDB: {reason}.") from error


# The first that matches reads it.
SOURCES: tuple[type[ImageSource], ...] = (
    DigitsSource,
    LmdbSource,
    MnistSource,
    CifarSource,
    ImageNetSource,
    FileSource,
)


def open_source(path: str, labels: str = "auto") -> ImageSource:
    """Open the source at path, or the built-in one of that name.

    Args:
        path: What to read.
        labels: auto (what the source has), none, folders (folder names whatever else is there),
            coarse (CIFAR-100's 20 superclasses); `label_choices` of the source says which of them
            it knows.

    Raises:
        DatasetError: Nothing can be read there.
    """
    for source in SOURCES:
        if source.matches(path):
            return source(path, labels)
    raise DatasetError(f"'{path}' does not exist.")


def class_folders(names: list[str]) -> dict[str, str] | None:
    """The class folder of each image, or None where the images do not lie in such.

    Below the folders that all images share, every image must lie in a folder, and there must be
    at least two; the uppermost of them is the class.
    """
    parts = [name.split("/") for name in names]
    shared = len(os.path.commonprefix([p[:-1] for p in parts]))
    if any(len(p) < shared + 2 for p in parts):
        return None
    return {name: p[shared] for name, p in zip(names, parts, strict=True)}


def is_numbered_collection(names: list[str]) -> bool:
    """Whether the folders only split one numbered collection, as our archives and FFHQ do.

    That is: all are numbered with five digits or more (00000, 01000, ...) and the numbers of the
    images run on from folder to folder, instead of starting anew or interleaving as in classes.
    """
    spans: dict[str, tuple[int, int]] = {}
    for name in names:
        match = re.fullmatch(r"(?:.*/)?(\d{5,})/\D*(\d+)\.\w+", name)
        if match is None:
            return False
        low, high = spans.get(match[1], (int(match[2]), int(match[2])))
        spans[match[1]] = (min(low, int(match[2])), max(high, int(match[2])))
    ordered = [spans[folder] for folder in sorted(spans, key=int)]
    return all(a[1] < b[0] for a, b in zip(ordered, ordered[1:], strict=False))


def _decode(data: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(data))
