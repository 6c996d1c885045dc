"""Scanning a source and writing it as a dataset archive. Imports no torch.

The archive is a stored zip or a folder of 00000/img00000000.png, ... and dataset.json, all images
of one square power-of-two size, all grey or all RGB.
"""

import contextlib
import io
import json
import os
import secrets
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress, islice
from pathlib import Path
from typing import NamedTuple

import PIL
import PIL.Image
from tqdm import tqdm

from dnnlib.util import atomic_write, first_line, printable
from training.data.convert.image_source import ImageSource, SourceImage
from training.data.convert.image_transforms import (
    PixelFormatError,
    Resize,
    has_alpha,
    to_grey_or_rgb,
)
from training.data.image_files import MIN_RESOLUTION, DatasetError, is_usable_resolution

# Part of every archive: raise it when the same source and options give other pixels.
TOOL_VERSION = "1"

MAX_LISTED = 20


class Record(NamedTuple):
    """What the scan found out about one image; size is None where the transform drops it."""

    name: str
    problem: str | None = None
    original: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None
    mode: str = ""
    alpha: bool = False
    labelled: bool = False


@dataclass
class Scan:
    """The outcome of scan(): what to write, and all that stands in the way.

    Args:
        keep: For each image of the source whether it is written.
        size: Side of the images in pixels.
        mode: L or RGB.
        labelled: Whether there are labels.
        original: Smallest and largest "width" and "height" in the source.
        problems: (name, reason) of each image that cannot be used.
        notes: Remarks for the user.
    """

    keep: list[bool]
    size: int
    mode: str
    labelled: bool
    original: dict[str, list[int]]
    problems: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self) -> str:
        """The list of all problems, one line a file, shortened after MAX_LISTED."""
        count = len(self.problems)
        lines = [f"{count} of {len(self.keep)} images cannot be used; nothing was written."]
        lines += [
            f"  {printable(name)}: {printable(reason)}"
            for name, reason in self.problems[:MAX_LISTED]
        ]
        if count > MAX_LISTED:
            lines.append(f"  and {count - MAX_LISTED} more")
        if any(self.keep):
            lines.append("Repair or remove them, or leave them out by --skip-unusable.")
        return "\n".join(lines)


def scan(source: ImageSource, resize: Resize, max_images: int | None = None) -> Scan:
    """Decode every image once and judge them together; one image is in memory at a time.

    Args:
        source: The images.
        resize: What becomes of their geometry.
        max_images: Look at the first ones only; None: at all.

    Raises:
        DatasetError: The source is damaged as a whole, or no image is left.
    """
    records = [_examine(image, resize) for image in _progress(source, "Scanning", max_images, None)]
    if not records:
        raise DatasetError("The source holds no images.")
    usable = [r for r in records if r.problem is None and r.size is not None]
    common = Counter(r.size for r in usable).most_common(1)
    size = (common[0][0] if common else None) or (0, 0)
    labelled = any(r.labelled for r in usable)
    reasons = [_reason(r, size, labelled) for r in records]
    problems = [(r.name, reason) for r, reason in zip(records, reasons, strict=True) if reason]
    keep = [not why and r.size is not None for r, why in zip(records, reasons, strict=True)]
    kept = list(compress(records, keep))
    if not kept and not problems:
        raise DatasetError("All images are too small for --transform=center-crop-wide.")
    widths, heights = zip(*(r.original for r in kept), strict=True) if kept else ((0,), (0,))
    return Scan(
        keep=keep,
        size=size[0],
        mode="RGB" if any(r.mode == "RGB" for r in kept) else "L",
        labelled=labelled,
        original={"width": [min(widths), max(widths)], "height": [min(heights), max(heights)]},
        problems=problems,
        notes=_notes(records, kept),
    )


def write_archive(
    source: ImageSource, plan: Scan, resize: Resize, dest: str, max_images: int | None = None
) -> int:
    """Write the images that the scan kept.

    All is written under a temporary name beside `dest` and renamed at the end, so that `dest` is
    complete or is not there.

    Args:
        source: The images that were scanned.
        plan: What the scan found.
        resize: As in the scan.
        dest: A .zip or a folder.
        max_images: As in the scan.

    Returns:
        The number of images written.

    Raises:
        DatasetError: Writing fails, or the source has changed.
    """
    labels: list[list] | None = [] if plan.labelled else None
    written = 0
    try:
        with open_archive(dest) as archive:
            images = _progress(source, "Writing", max_images, len(plan.keep))
            for image, keep in zip(images, plan.keep, strict=False):
                if keep:
                    name = f"{written // 1000:05d}/img{written:08d}.png"
                    archive.add(name, _encode(image, plan, resize))
                    written += 1
                    if labels is not None:
                        labels.append([name, image.label])
            if written != sum(plan.keep):
                raise DatasetError("The source has changed since the scan; try again.")
            content = {"labels": labels, "meta": _meta(source, plan, resize)}
            archive.add("dataset.json", json.dumps(content).encode())
    except OSError as error:
        raise DatasetError(f"Cannot write '{dest}': {error.strerror or error}.") from error
    return written


def check_destination(dest: str) -> None:
    """Check that `dest` can be written, before anything is read.

    Raises:
        DatasetError: It cannot, or would overwrite a folder.
    """
    path = Path(dest).absolute()
    if _is_zip(path) and path.is_dir():
        raise DatasetError(f"'{dest}' is a folder; give another name for the zip.")
    if not _is_zip(path) and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DatasetError(f"'{dest}' is there and not empty; give a new folder or a .zip name.")
    parent = next(p for p in path.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DatasetError(f"'{dest}' cannot be written: no permission in '{parent}'.")


class Archive(ABC):
    """A dataset archive that is being written."""

    @abstractmethod
    def add(self, name: str, data: bytes) -> None:
        """Add one file."""


@contextlib.contextmanager
def open_archive(dest: str) -> Iterator[Archive]:
    """Context for writing dest, a .zip or a folder; it appears when the block succeeds."""
    path = Path(dest).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_zip(path):
        with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
            yield _ZipArchive(archive)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        part.mkdir()
        yield _FolderArchive(part)
        if path.exists():
            path.rmdir()  # empty, or this fails
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _ZipArchive(Archive):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._zip = archive

    def add(self, name: str, data: bytes) -> None:
        # A fixed time stamp: the same source gives the same bytes. Stored: read without inflating.
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.external_attr = 0o644 << 16  # some unzip programs give files without it no permission
        self._zip.writestr(info, data)


class _FolderArchive(Archive):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def _examine(image: SourceImage, resize: Resize) -> Record:
    labelled = image.label is not None
    try:
        with image.load() as opened:
            original, alpha = opened.size, has_alpha(opened)
            mode = to_grey_or_rgb(opened).mode
    except PIL.UnidentifiedImageError:
        return Record(image.name, "is damaged or no image that Pillow can read")
    except PixelFormatError as error:
        return Record(image.name, str(error))
    except Exception as error:  # a decoder can raise anything on damaged data
        return Record(image.name, f"cannot be read ({first_line(error)})")
    size = resize.output_size(original)
    return Record(image.name, _size_problem(size), original, size, mode, alpha, labelled)


def _size_problem(size: tuple[int, int] | None) -> str | None:
    if size is None:
        return None
    width, height = size
    if width != height:
        return f"is {width}x{height}, not square; add --transform=center-crop --width --height"
    if not is_usable_resolution(width):
        return (
            f"is {width}x{height}, but a side must be a power of two from {MIN_RESOLUTION}; "
            "add --width and --height"
        )
    return None


def _reason(record: Record, size: tuple[int, int], labelled: bool) -> str | None:
    """What is wrong with an image, alone or among the others, or None."""
    if record.problem or record.size is None:
        return record.problem
    if record.size != size:
        return "is {}x{}, where most are {}x{}; add --width and --height".format(
            *record.size, *size
        )
    if labelled and not record.labelled:
        return "has no label in dataset.json, where others have; or add --labels=none"
    return None


def _notes(records: list[Record], kept: list[Record]) -> list[str]:
    notes = []
    alpha = sum(r.alpha for r in kept)
    if alpha:
        notes.append(f"transparency of {alpha} images was dropped")
    modes = Counter(r.mode for r in kept)
    if len(modes) == 2:
        notes.append(f"{modes['L']} grey images among RGB ones become RGB")
    dropped = sum(r.problem is None and r.size is None for r in records)
    if dropped:
        notes.append(f"{dropped} images too small for center-crop-wide are left out")
    return notes


def _encode(image: SourceImage, plan: Scan, resize: Resize) -> bytes:
    try:
        with image.load() as opened:
            pixels = resize.apply(to_grey_or_rgb(opened).convert(plan.mode))
    except Exception as error:  # it was readable a moment ago
        raise DatasetError(f"'{image.name}' has changed since the scan; try again.") from error
    if pixels.size != (plan.size, plan.size):
        raise DatasetError(f"'{image.name}' has changed since the scan; try again.")
    buffer = io.BytesIO()
    # Uncompressed: training reads every image many times and its loaders decode these fastest.
    pixels.save(buffer, "png", compress_level=0)
    return buffer.getvalue()


def _meta(source: ImageSource, plan: Scan, resize: Resize) -> dict:
    """Describe how the archive came to be; resampling is Pillow's, so its version counts too."""
    meta = {
        "tool": "dataset_tool.py",
        "tool_version": TOOL_VERSION,
        "pillow_version": PIL.__version__,
        "source": source.kind,
        "original_size": plan.original,
        "resize_filter": resize.filter,
        "transform": resize.transform,
    }
    if source.class_names is not None and plan.labelled:
        meta["class_names"] = source.class_names
    return meta


def _progress(
    source: ImageSource, title: str, max_images: int | None, total: int | None
) -> Iterable[SourceImage]:
    total = source.count() if total is None else total
    if max_images is not None:
        total = max_images if total is None else min(total, max_images)
    return tqdm(islice(source.images(), max_images), title, total, unit="img", disable=None)


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"
