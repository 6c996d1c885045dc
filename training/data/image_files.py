"""Image files in a folder or zip, and their headers; shared by reader and writer.

Nothing here imports torch, so that dataset_tool.py starts fast.
"""

import errno
import hashlib
import io
import os
import re
import stat
import struct
import zipfile
from abc import ABC, abstractmethod
from typing import IO, NamedTuple

import PIL.Image

from dnnlib.errors import UserError
from dnnlib.hashing import add_stream
from dnnlib.util import first_line, printable
from training.data.zip_directory import count_members

IMAGE_EXTENSIONS = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)
ALPHA_MODES = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))  # of Pillow
MIN_RESOLUTION = 8

MAX_FILE_BYTES = 1 << 30  # of an image or dataset.json; more is damage or an attack
MAX_MEMBERS = 10_000_000  # of a zip: eight times ImageNet, and 5 GB of memory
MAX_RATIO = 1100  # of packing; deflate reaches 1032
_PARTS = re.compile(r"[/\\]")  # between the parts of a name

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 26  # signature, length and type of IHDR, width, height, bit depth, colour type
_PNG_COLOUR_TYPES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}


class DatasetError(UserError, ValueError):
    """Data that cannot be used; the message is one line that says what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        # Names of files may hold anything; a data loader's worker adds lines of its own.
        super().__init__("\n".join(printable(line, 1000) for line in message.split("\n")))


def is_usable_resolution(size: int) -> bool:
    """Whether the networks can be built for images of this many pixels a side."""
    return size >= MIN_RESOLUTION and size & (size - 1) == 0


class FileStore(ABC):
    """Read-only access to the files below a folder or inside a zip; nothing is ever extracted.

    Picklable: open handles stay behind, so a store can be sent to data-loader workers.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> list[str]:
        """The sorted names of all visible files, relative, with forward slashes."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""

    @abstractmethod
    def size(self, name: str) -> int:
        """The length of one file in bytes, unpacked."""

    @abstractmethod
    def fingerprint(self, name: str) -> str:
        """A text that changes with the content of one file."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """Open one file for reading; raises OSError, zipfile.BadZipFile or KeyError."""

    @abstractmethod
    def signature(self, content: bool = False) -> str:
        """A text that differs for other files: by names and sizes, or by `content`, too."""

    @abstractmethod
    def close(self) -> None:
        """Release the handles; the next access opens them again."""


class FolderStore(FileStore):
    """All files below a folder."""

    def names(self) -> list[str]:
        """The sorted names of all visible files, relative, with forward slashes."""
        found, seen = [], set()
        for folder, folders, files in os.walk(
            self.path, onerror=self._unreadable, followlinks=True
        ):
            folders.sort()
            if os.path.realpath(folder) in seen:  # links may lead in circles
                folders.clear()
                continue
            seen.add(os.path.realpath(folder))
            prefix = os.path.relpath(folder, self.path).replace(os.sep, "/")
            prefix = "" if prefix == "." else prefix + "/"
            found += [prefix + name for name in files]
        return sorted(filter(_is_visible, found))

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return os.path.isfile(os.path.join(self.path, name))

    def size(self, name: str) -> int:
        """The length of one file in bytes."""
        return os.path.getsize(os.path.join(self.path, name))

    def fingerprint(self, name: str) -> str:
        """The SHA-256 of one file."""
        found = hashlib.sha256()
        self._add_content(name, found)
        return found.hexdigest()

    def open(self, name: str) -> IO[bytes]:
        """Open one file for reading; links are followed, to files alone."""
        path = os.path.join(self.path, name)
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe blocks, a device may never end
            raise OSError(errno.EINVAL, "it is no regular file", path)
        return open(path, "rb")

    def signature(self, content: bool = False) -> str:
        """A digest of names and sizes of images and labels, or of all that is in them."""
        found = hashlib.sha256()
        names = [*image_names(self), "dataset.json"]
        for name in filter(self.exists, names):  # without links that lead nowhere
            found.update(f"{name}\0{self.size(name)}\0".encode())
            if content:
                self._add_content(name, found)
        return found.hexdigest()

    def close(self) -> None:
        """Hold no handle: nothing to do."""

    def _add_content(self, name: str, found: "hashlib._Hash") -> None:
        with self.open(name) as stream:
            add_stream(found, stream)

    def _unreadable(self, error: OSError) -> None:
        raise DatasetError(f"Cannot list '{error.filename}': {error.strerror}.")


class ZipStore(FileStore):
    """All files inside a zip, through one handle a process that is opened at first use."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._zip: zipfile.ZipFile | None = None
        self._zip_pid = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_zip": None, "_zip_pid": 0}

    def names(self) -> list[str]:
        """The sorted names of all visible files, as they stand in the zip."""
        return sorted({name for name in self._handle().namelist() if _is_visible(name)})

    def exists(self, name: str) -> bool:
        """Whether there is a member of that name."""
        return name in self._handle().NameToInfo

    def size(self, name: str) -> int:
        """The length of one member in bytes, unpacked; reading gives no more."""
        return self._handle().getinfo(name).file_size

    def fingerprint(self, name: str) -> str:
        """Length and CRC-32 of one member, which the zip's directory holds."""
        member = self._handle().getinfo(name)
        return f"{member.file_size} {member.CRC:08x}"

    def open(self, name: str) -> IO[bytes]:
        """Open one member for reading."""
        return self._handle().open(name)

    def signature(self, content: bool = True) -> str:
        """A digest of the names, sizes and checksums of all members."""
        found = hashlib.sha256()
        for member in self._handle().infolist():
            found.update(f"{member.filename}\0{member.file_size}\0{member.CRC}\0".encode())
        return found.hexdigest()

    def close(self) -> None:
        """Close the zip; the next access opens it again."""
        if self._zip is not None:
            self._zip.close()
        self._zip = None

    def _handle(self) -> zipfile.ZipFile:
        # A forked worker shares the file offset of its parent's handle and must open its own.
        if self._zip is None or self._zip_pid != os.getpid():
            try:
                self._zip = _open_zip(self.path)
            except DatasetError:
                raise
            except OSError as error:
                raise DatasetError(f"Cannot open '{self.path}': {error.strerror}.") from error
            except Exception as error:  # a parser can raise anything on damaged data
                reason = first_line(error)
                raise DatasetError(f"'{self.path}' is not a readable zip: {reason}.") from error
            self._zip_pid = os.getpid()
        return self._zip


def _open_zip(path: str) -> zipfile.ZipFile:
    """Open a zip and check all its members; raises DatasetError and what zipfile raises."""
    with open(path, "rb") as file:
        count = count_members(file, MAX_MEMBERS)
    if count > MAX_MEMBERS:
        raise DatasetError(
            f"'{path}' has {count} members or more; at most {MAX_MEMBERS} are read from a zip: "
            "unpack it and give the folder."
        )
    opened = zipfile.ZipFile(path)
    try:
        if len(opened.infolist()) != count:
            raise zipfile.BadZipFile("its directory contradicts itself")
        _check_members(path, opened.infolist())
    except BaseException:
        opened.close()
        raise
    return opened


def _check_members(path: str, members: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip that no honest tool writes; raises DatasetError, naming the member."""
    seen = set()
    for member in members:
        problem = "is in it twice" if member.filename in seen else _problem(member)
        if problem:
            raise DatasetError(
                f"'{path}' is not to be trusted: its member '{printable(member.filename)}' "
                f"{problem}."
            )
        seen.add(member.filename)


def _problem(member: zipfile.ZipInfo) -> str | None:
    name = member.filename
    if name.startswith(("/", "\\")) or ".." in _PARTS.split(name) or name[1:2] == ":":
        return "leads out of it"
    if "\\" in name:
        return "has a backslash in its name, where a zip has '/'"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link"
    if member.file_size > MAX_RATIO * member.compress_size + MAX_RATIO:
        return f"unpacks from {member.compress_size} to {member.file_size} bytes"
    return None


def open_store(path: str | os.PathLike) -> FileStore:
    """Open a folder or a .zip file; raises DatasetError where it is neither."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return FolderStore(path)
    if not os.path.exists(path):
        raise DatasetError(f"'{path}' does not exist; give a folder or zip of images.")
    if not (os.path.isfile(path) and zipfile.is_zipfile(path)):
        raise DatasetError(
            f"'{path}' is neither a folder nor a complete zip; give a folder or zip of images."
        )
    return ZipStore(path)


def image_names(store: FileStore) -> list[str]:
    """The sorted names of the store's files that have an image's extension."""
    return [n for n in store.names() if os.path.splitext(n)[1].lower() in IMAGE_EXTENSIONS]


def read_file(store: FileStore, name: str) -> bytes:
    """Read one file whole.

    Raises:
        DatasetError: It is larger than `MAX_FILE_BYTES`.
    """
    check_size(name, store.size(name), MAX_FILE_BYTES)
    with store.open(name) as stream:
        return stream.read()


def check_size(name: str, size: int, limit: int) -> None:
    """Raise DatasetError for more than `limit` bytes: small archives can unpack to terabytes."""
    if size > limit:
        raise DatasetError(f"'{name}' unpacks to {size} bytes; at most {limit} are read.")


def open_image(store: FileStore, name: str) -> PIL.Image.Image:
    """Open one image; its pixels are decoded at the first use. Raises what Pillow raises."""
    return PIL.Image.open(io.BytesIO(read_file(store, name)))


class ImageHeader(NamedTuple):
    """What a file says about its image: size in pixels, Pillow mode, bits a channel."""

    width: int
    height: int
    mode: str
    bits: int


def read_image_header(store: FileStore, name: str) -> ImageHeader:
    """Read size and pixel format without decoding pixels; raises what Pillow raises.

    PNG headers are parsed here: tens of thousands of them take a second or two.
    """
    with store.open(name) as stream:
        start = stream.read(_PNG_HEADER_BYTES)
    if start[:8] == _PNG_SIGNATURE and start[12:16] == b"IHDR" and len(start) == _PNG_HEADER_BYTES:
        width, height, bits, colour_type = struct.unpack(">IIBB", start[16:])
        return ImageHeader(width, height, _PNG_COLOUR_TYPES.get(colour_type, "?"), bits)
    with open_image(store, name) as image:
        bits = 8 if image.mode in ("L", "RGB", "P", "LA", "RGBA", "CMYK", "YCbCr") else 0
        return ImageHeader(image.width, image.height, image.mode, bits)


def _is_visible(name: str) -> bool:
    # Zips made on a Mac carry a shadow "__MACOSX/._NAME" for every file.
    parts = _PARTS.split(name)
    hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return parts[-1] != "" and parts[0] != "__MACOSX" and not hidden
