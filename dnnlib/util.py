"""EasyDict, files that may live behind a URL, and files that appear complete or not at all."""

import contextlib
import hashlib
import os
import re
import secrets
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dnnlib.errors import UserError

_TIMEOUT = (10, 60)  # seconds to connect, seconds between two chunks
MAX_DOWNLOAD_BYTES = 1 << 33  # eight times the largest published snapshot
_CHUNK = 1 << 18  # bytes


class EasyDict(dict):
    """A dict whose items are attributes too: `d.key` is `d["key"]`.

    A missing key raises KeyError as an item and AttributeError as an attribute.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"EasyDict has no item {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"EasyDict has no item {name!r}") from None


def printable(text: str, limit: int = 100) -> str:
    """`text` fit for a message of one line: control characters escaped, the end cut off."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:limit])
    return shown + "..." if len(text) > limit else shown


def first_line(error: BaseException) -> str:
    """The error's first line of text, or its class name where it has none."""
    lines = str(error).strip().splitlines()
    return printable(lines[0], 200) if lines else type(error).__name__


class DownloadError(UserError, OSError):
    """A URL could not be fetched; the message says where the file may be put by hand."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, durable: bool = True) -> Iterator[BinaryIO]:
    """Context that yields a new binary file which replaces `path` when the block succeeds.

    A reader sees the old file or the whole new one. After an error the old file is untouched and
    nothing is left beside it.

    Args:
        path: The file.
        durable: Whether it must survive a crash of the machine; False is faster.

    Raises:
        OSError: The file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            if durable:  # a rename may reach the disk before the data does
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_url(name: str | os.PathLike) -> bool:
    """Whether `name` has a scheme (`https://...`) and is therefore no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(name)) is not None


def cache_root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Folder of cached files: `cache_dir`, `$DNNLIB_CACHE_DIR` or `~/.cache/dnnlib`."""
    root = cache_dir or os.environ.get("DNNLIB_CACHE_DIR") or Path.home() / ".cache" / "dnnlib"
    return Path(root).expanduser().absolute()


def cache_path(url: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """The file below `cache_root(cache_dir)` that keeps the download of `url`."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    last_part = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", urllib.parse.unquote(last_part))[-100:]
    return cache_root(cache_dir) / f"{digest}_{readable or 'download'}"


def open_url(
    url_or_path: str | os.PathLike, cache_dir: str | os.PathLike | None = None
) -> BinaryIO:
    """Open a local file, or the cached download of an http(s) URL, for reading bytes.

    A URL is downloaded once, with a progress bar, to `cache_path(url, cache_dir)`.

    Raises:
        DownloadError: The URL cannot be fetched whole.
        ValueError: The URL is neither http nor https.
        OSError: The local file cannot be opened.
    """
    if not is_url(url_or_path):
        return open(url_or_path, "rb")
    url = os.fspath(url_or_path)
    scheme = url.split(":", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"cannot open {url}: only http, https and local paths are read")
    path = cache_path(url, cache_dir)
    if not path.exists():
        _download(url, path)
    return open(path, "rb")


def _download(url: str, path: Path) -> None:
    import requests  # slow to import, and most runs download nothing

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the header a server may compress, and Content-Length would count other bytes.
        # requests follows redirects to http and https only.
        with requests.get(
            url, stream=True, timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
        ) as response:
            response.raise_for_status()
            _store(response, path)
    except (requests.RequestException, OSError) as error:
        raise DownloadError(
            f"cannot download {url} ({first_line(error)}); "
            f"check the connection, or put the file at {path} by hand"
        ) from error


def _store(response: Any, path: Path) -> None:
    from tqdm import tqdm

    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise OSError("the server answered with a web page, not with a file")
    declared = response.headers.get("Content-Length", "")
    expected = int(declared) if declared.isdecimal() else None
    if expected is not None and expected > MAX_DOWNLOAD_BYTES:
        raise OSError(f"the server announces {expected} bytes; at most {MAX_DOWNLOAD_BYTES} go")
    size = 0
    bar = tqdm(
        total=expected, desc=path.name[17:], unit="B", unit_scale=True, disable=None, leave=False
    )
    with bar, atomic_write(path) as file:
        for chunk in response.iter_content(_CHUNK):
            size += file.write(chunk)
            if size > MAX_DOWNLOAD_BYTES:
                raise OSError(f"the server sends more than {MAX_DOWNLOAD_BYTES} bytes")
            bar.update(len(chunk))
        if size == 0:
            raise OSError("the server sent an empty file")
        if expected is not None and size != expected:
            raise OSError(f"the server announced {expected} bytes and sent {size}")
