"""Networks that turn images into features: TorchScript files, by name, path or URL.

A TorchScript file is a program for PyTorch's own interpreter. It cannot run Python, but it can run
any operator, and some read and write files: use detectors of people you trust.
"""

import inspect
import os
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.hashing import file_sha256
from dnnlib.util import DownloadError, cache_path, first_line, is_url, open_url
from metrics import MetricError
from metrics.features import require_finite

__all__ = ["STANDARD_URLS", "TORCH_FIDELITY", "Detector", "is_out_of_memory", "load_detector"]

_FOLDER = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
STANDARD_URLS = {"inception": _FOLDER + "inception-2015-12-05.pt", "vgg16": _FOLDER + "vgg16.pt"}
TORCH_FIDELITY = "torch-fidelity"

# Shapes of the standard networks' outputs: a wrong file under the right name shows here.
_STANDARD_WIDTHS = {"inception": {"features": 2048, "probabilities": 1008},
                    "vgg16": {"features": 4096}}  # fmt: skip

_ARGUMENTS = {  # of the official calling convention, for each output
    "features": {"return_features": True},
    "probabilities": {"no_output_bias": True},
    "lpips": {"return_lpips": True, "resize_images": False},
}
_MAX_FILE_BYTES = 4 << 30


@dataclass(frozen=True)
class Detector:
    """A network, where it came from, and how results of it are marked.

    name is the part after @ in the names of results, "" for the standard detector; sha256 is the
    hash of its file, `source` the path or URL it came from.
    """

    module: Any
    name: str
    sha256: str
    source: str
    device: torch.device
    widths: Any = None  # expected number of outputs, by output

    def __call__(
        self, images: torch.Tensor, output: str, start: int = 0, batch: int = 64
    ) -> np.ndarray:
        """What the network says about images [N, 1 or 3, H, W] with values in 0..255.

        output: "features" [N, D]; "probabilities" of classes [N, K], by the softmax without the
        bias of the last layer; "lpips" [N, L], whose squared differences sum up to the perceptual
        distance. Returns float32. At most `batch` images pass at once, and half as many where these
        do not fit into memory. Raises MetricError, naming the image (counted from start), for
        values that are not finite, and where the network lacks an output.
        """
        while (rows := self._look(images, output, batch)) is None:
            batch = min(batch, len(images)) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        require_finite(rows, start, "the detector's output for image")
        return rows

    def _look(self, images: torch.Tensor, output: str, batch: int) -> np.ndarray | None:
        """The rows of all images; None where a batch of more than one is too much for memory."""
        arguments = self._arguments(output)
        parts = []
        for part in images.split(batch):
            try:
                part = part.to(self.device)
                if part.shape[1] == 1:
                    part = part.repeat(1, 3, 1, 1)
                with torch.inference_mode():
                    rows = self.module(part, **arguments)
            except Exception as error:  # TorchScript raises what its operators raise
                if not is_out_of_memory(error):
                    text = _last_line(error)
                    raise MetricError(f"detector {self.source} fails: {text}") from error
                if len(part) > 1:
                    return None
                raise
            parts.append(self._checked(rows, len(part), output))
        return np.concatenate(parts)

    def require_output(self, output: str) -> None:
        """Raise MetricError where the network cannot give an output."""
        needed = next(iter(_ARGUMENTS[output]))
        if needed not in self._known_arguments():
            raise MetricError(
                f"detector {self.source} has no {output}: its forward() takes no {needed}"
            )

    def _arguments(self, output: str) -> dict[str, Any]:
        self.require_output(output)
        known = self._known_arguments()
        # resize_images is the VGG file's own: without it, it would shrink images to 224 pixels.
        return {key: value for key, value in _ARGUMENTS[output].items() if key in known}

    def _known_arguments(self) -> set[str]:
        schema = getattr(self.module.forward, "schema", None)
        if schema is None:  # no TorchScript
            return set(inspect.signature(self.module.forward).parameters)
        return {argument.name for argument in schema.arguments}

    def _checked(self, rows: Any, count: int, output: str) -> np.ndarray:
        if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != count:
            shape = list(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise MetricError(
                f"detector {self.source} returned {shape} for {count} images, not "
                f"[{count}, {output}]"
            )
        width = (self.widths or {}).get(output, rows.shape[1])
        if rows.shape[1] != width:
            raise MetricError(
                f"{self.source} is not the standard detector: {rows.shape[1]} {output} instead "
                f"of {width}; remove it from the cache"
            )
        return rows.float().cpu().numpy()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory; TorchScript says so in the text of other errors."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text)
    )


def load_detector(standard: str, choice: str | None, device: torch.device) -> Detector:
    """The detector of a metric whose standard one is "inception" or "vgg16", on a device.

    choice: None for the standard one, else a TorchScript file by path or URL, or "torch-fidelity".
    The standard detector is what lies at the official URL. Its hash is not known here; a file
    elsewhere counts as standard when it equals the one that was downloaded. Raises MetricError,
    one line that says what to do.
    """
    if choice == TORCH_FIDELITY:
        from metrics.fidelity import load_fidelity_detector

        return load_fidelity_detector(standard, device)
    url = STANDARD_URLS[standard]
    source = choice or url
    path = local_file(source)
    digest = file_sha256(path)
    is_standard = source == url or digest == _sha256_if_there(cache_path(url))
    module = _load_script(path, source, device)
    stem = Path(source.split("?")[0]).name.removesuffix(".pt")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem) or "detector"  # it becomes a part of file names
    return Detector(
        module=module,
        name="" if is_standard else stem,
        sha256=digest,
        source=source,
        device=device,
        widths=_STANDARD_WIDTHS[standard] if is_standard else None,
    )


def local_file(source: str) -> Path:
    try:
        with open_url(source):
            return cache_path(source) if is_url(source) else Path(source)
    except DownloadError as error:
        raise MetricError(
            f"{error}, or choose another detector by --detector (python -m metrics.train_detector "
            "makes one)"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise MetricError(f"cannot read --detector={source}: {reason}") from None


def _load_script(path: Path, source: str, device: torch.device) -> Any:
    problem = _archive_problem(path)
    if problem is None:
        try:
            with warnings.catch_warnings():
                # PyTorch advises other formats; published detectors are in this one.
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(str(path), map_location=device).eval()
        except Exception as error:  # a damaged archive can raise anything
            problem = _last_line(error)
    raise MetricError(
        f"{source} is no usable TorchScript file ({problem}); remove {path} to download it again"
        if is_url(source)
        else f"--detector={source} is no usable TorchScript file ({problem})"
    )


def _archive_problem(path: Path) -> str | None:
    """What keeps a file from being a TorchScript archive, looked at as a zip alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        return f"not a complete zip: {first_line(error)}"
    names = [member.filename.partition("/")[2] for member in members]
    if "constants.pkl" not in names or not any(name.startswith("code/") for name in names):
        return "a zip without TorchScript code"
    if sum(member.file_size for member in members) > _MAX_FILE_BYTES:
        return f"unpacks to more than {_MAX_FILE_BYTES >> 30} GiB"
    return None


def _sha256_if_there(path: os.PathLike) -> str | None:
    return file_sha256(Path(path)) if os.path.isfile(path) else None


def _last_line(error: BaseException) -> str:
    """PyTorch puts the reason last, after a traceback of the script."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return first_line(ValueError(lines[-1])) if lines else type(error).__name__
