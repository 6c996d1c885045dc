"""Reading a dataset archive for training.

An archive is a zip or folder of images of one square power-of-two size with dataset.json.
"""

import os
import re
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from dnnlib.util import first_line, printable
from training.data.dataset_json import read_labels
from training.data.image_cache import DecodedImages
from training.data.image_files import (
    ALPHA_MODES,
    MIN_RESOLUTION,
    DatasetError,
    FileStore,
    ImageHeader,
    image_names,
    is_usable_resolution,
    open_image,
    open_store,
    read_image_header,
)
from training.data.labels import label_array, one_hot

_CHANNELS = {"L": 1, "RGB": 3}
_REMEDY = "convert the data with dataset_tool.py"


class ImageFolderDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """Images of a zip or folder in the order of their names, with the labels of dataset.json.

    Item i is (image, label): uint8 [C, H, W] with C 1 or 3, and float32 [label_dim]; without
    labels the label has shape [0]. Integer labels become one-hot rows over the classes of the
    whole archive, vectors stay as they are.

    name, image_shape [C, H, W] and label_dim (number of classes, or length of the vectors, or 0)
    describe it. All image headers are checked here.

    Args:
        path: Zip or folder.
        resolution: Refuse images of another size.
        use_labels: Read labels.
        max_size: Take a random subset of that many images.
        xflip: Append a mirrored copy of every image.
        random_seed: Of the subset.

    Raises:
        DatasetError: The data cannot be used. An image whose pixels turn out damaged raises it
            when it is read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        resolution: int | None = None,
        use_labels: bool = False,
        max_size: int | None = None,
        xflip: bool = False,
        random_seed: int = 0,
    ) -> None:
        self._store = open_store(path)
        self._names = image_names(self._store)
        self.name = Path(path).stem if os.path.isfile(path) else Path(path).absolute().name
        self.image_shape = _check_headers(self._store, self._names)
        if resolution is not None and resolution != self.resolution:
            raise DatasetError(
                f"'{path}' has images of {self.resolution}x{self.resolution}, not "
                f"{resolution}x{resolution}; {_REMEDY} --width={resolution} --height={resolution}."
            )
        self._labels = _label_rows(self._store, self._names) if use_labels else None
        self.label_dim = _label_dim(self._labels)
        chosen = subset_indices(len(self._names), max_size, random_seed)
        self._indices = np.concatenate([chosen, chosen]) if xflip else chosen
        self._first_flipped = len(chosen)
        self._decoded: DecodedImages | None = None
        self._signature = self._store.signature()
        self._opened = self._file_state()

    @property
    def num_channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return self.image_shape[0]

    @property
    def resolution(self) -> int:
        """Height and width in pixels."""
        return self.image_shape[1]

    @property
    def has_labels(self) -> bool:
        """Whether labels are in use."""
        return self._labels is not None

    @property
    def has_onehot_labels(self) -> bool:
        """Whether labels are in use and are classes."""
        return self._labels is not None and self._labels.ndim == 1

    @property
    def label_shape(self) -> list[int]:
        """Shape of a label: [label_dim]."""
        return [self.label_dim]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        number = self._indices[index]
        image = None if self._decoded is None else self._decoded.read(number)
        if image is None:  # what is damaged says so here
            image = self.decode_file(number)
        if index % len(self) >= self._first_flipped:
            image = image[:, :, ::-1]
        return np.ascontiguousarray(image), self.get_label(index)

    def get_label(self, index: int) -> np.ndarray:
        """The label of one image, float32 [label_dim]."""
        if self._labels is None:
            return np.zeros(0, np.float32)
        label = self._labels[self._indices[index]]
        if self.has_onehot_labels:
            return one_hot(label, self.label_dim)
        return label.copy()

    @property
    def raw_labels(self) -> np.ndarray:
        """All labels at once: class numbers, int64 [N], or vectors, float32 [N, label_dim]."""
        if self._labels is None:
            return np.zeros((len(self), 0), np.float32)
        return self._labels[self._indices]

    @property
    def num_files(self) -> int:
        """Images of the archive, whatever the subset."""
        return len(self._names)

    @property
    def signature(self) -> str:
        """A text that differs for other data, by what is fast to read."""
        return self._signature

    def content_signature(self) -> str:
        """A text that differs for any other content of the archive."""
        return self._store.signature(content=True)

    def decode_file(self, number: int) -> np.ndarray:
        """Image `number` of the archive, uint8 [C, H, W].

        Raises:
            DatasetError: It is damaged.
        """
        return self._decode(self._names[number])

    def use_decoded(self, decoded: DecodedImages) -> None:
        """Take images from there from now on, and decode those alone that it does not hold."""
        self._decoded = decoded

    def check_unchanged(self) -> None:
        """Check that the archive is still the one that was opened.

        Raises:
            DatasetError: Other data has taken its place.
        """
        if self._file_state() == self._opened:
            return
        self._store.close()
        if self._store.signature() != self._signature:
            raise DatasetError(
                f"'{self._store.path}' has been replaced by other data since it was opened; put "
                "it back and give the same command again, or start anew with --restart."
            )
        self._opened = self._file_state()  # a copy of the same

    def _file_state(self) -> tuple[int, int, int] | None:
        """What changes when a zip is replaced; of a folder nothing is watched."""
        if not os.path.isfile(self._store.path):
            return None
        found = os.stat(self._store.path)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _decode(self, name: str) -> np.ndarray:
        try:
            with open_image(self._store, name) as opened:
                pixels = np.array(opened)
        except Exception as error:  # a decoder can raise anything on damaged data
            # Pillow tells the address of what it has read from: another one each time.
            reason = re.sub(r" <[^>]* at 0x\w+>", "", first_line(error))
            raise DatasetError(
                f"'{printable(name)}' in '{self._store.path}' cannot be decoded ({reason}); "
                f"{'restore' if isinstance(error, FileNotFoundError) else 'repair or remove'} it."
            ) from error
        image = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if list(image.shape) != self.image_shape or image.dtype != np.uint8:
            raise DatasetError(f"'{name}' in '{self._store.path}' has changed; start again.")
        return image


def _check_headers(store: FileStore, names: list[str]) -> list[int]:
    """Check size and format of all images from their headers; return the common [C, H, W]."""
    if not names:
        raise DatasetError(f"'{store.path}' holds no images; {_REMEDY}.")
    first = _usable_header(store, names[0])
    headers = ((name, _usable_header(store, name)) for name in names[1:])
    others = [(name, header) for name, header in headers if header != first]
    if others:
        name, header = others[0]
        raise DatasetError(
            f"'{store.path}' mixes images: {len(others)} of {len(names)} differ from '{names[0]}' "
            f"({_describe(first)}), such as '{name}' ({_describe(header)}); {_REMEDY}."
        )
    if first.width != first.height or not is_usable_resolution(first.width):
        raise DatasetError(
            f"'{store.path}' has images of {first.width}x{first.height}; they must be square, a "
            f"power of two from {MIN_RESOLUTION} a side; {_REMEDY} --width --height."
        )
    return [_CHANNELS[first.mode], first.height, first.width]


def _usable_header(store: FileStore, name: str) -> ImageHeader:
    where = f"'{printable(name)}' in '{store.path}'"
    try:
        header = read_image_header(store, name)
    except PIL.UnidentifiedImageError as error:
        raise DatasetError(f"{where} is damaged or no image; repair or remove it.") from error
    except Exception as error:  # a parser can raise anything on damaged data
        raise DatasetError(f"{where} cannot be read ({first_line(error)}).") from error
    if header.mode in ALPHA_MODES:
        raise DatasetError(f"{where} has an alpha channel; {_REMEDY}, which drops it.")
    if header.mode not in _CHANNELS or header.bits != 8:
        bits = f", {header.bits} bits" if header.bits else ""
        raise DatasetError(
            f"{where} is of mode {header.mode}{bits}; images must be 8-bit grey or RGB; {_REMEDY}."
        )
    return header


def _describe(header: ImageHeader) -> str:
    return f"{header.width}x{header.height} {'RGB' if header.mode == 'RGB' else 'grey'}"


def _label_rows(store: FileStore, names: list[str]) -> np.ndarray:
    """The labels in the order of names: int64 [N] for classes, float32 [N, D]."""
    labels = read_labels(store)
    if not labels:
        raise DatasetError(
            f"'{store.path}' has no labels in dataset.json; train without --cond, or make the "
            "archive from a labelled source with dataset_tool.py."
        )
    unlabelled = [name for name in names if name not in labels]
    if unlabelled:
        raise DatasetError(
            f"dataset.json in '{store.path}' lacks labels for {len(unlabelled)} of {len(names)} "
            f"images, such as '{unlabelled[0]}'."
        )
    return label_array(labels, names)


def _label_dim(labels: np.ndarray | None) -> int:
    if labels is None:
        return 0
    return int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]


def subset_indices(count: int, max_size: int | None, seed: int) -> np.ndarray:
    """Sorted indices of all images, or of a random subset of max_size.

    RandomState is frozen for good, so a seed means the same subset everywhere.

    Args:
        count: Images there are.
        max_size: Images to choose; None: all.
        seed: Of the choice, 0 to 2^32 - 1.

    Returns:
        int64 array.

    Raises:
        DatasetError: The size or the seed is out of range.
    """
    if max_size is None or max_size == count:
        return np.arange(count)
    if not 1 <= max_size <= count:
        raise DatasetError(f"The subset must have 1 to {count} images, not {max_size}.")
    if not 0 <= seed < 2**32:
        raise DatasetError(f"The seed of the subset must be from 0 to 2^32 - 1, not {seed}.")
    return np.sort(np.random.RandomState(seed).permutation(count)[:max_size])
