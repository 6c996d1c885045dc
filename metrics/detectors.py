"""Which detector is meant, and loading it: TorchScript files, by name, path or URL.

A TorchScript file is a program for PyTorch's own interpreter. It cannot run Python, but it can run
any operator, and some read and write files: use detectors of people you trust.
"""

import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from dnnlib.hashing import file_sha256
from dnnlib.util import cache_path, first_line, is_url
from metrics import MetricError
from metrics.detector import Detector, detector_file, reason_of
from metrics.fidelity import TORCH_FIDELITY, load_fidelity_detector

_FOLDER = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
STANDARD_URLS = {"inception": _FOLDER + "inception-2015-12-05.pt", "vgg16": _FOLDER + "vgg16.pt"}

# Columns of the standard networks' outputs: a wrong file under the right name shows here.
_STANDARD_WIDTHS = {
    "inception": {"features": 2048, "probabilities": 1008},
    "vgg16": {"features": 4096},
}
_MAX_FILE_BYTES = 4 << 30


def load_detector(standard: str, choice: str | None, device: torch.device) -> Detector:
    """The detector of a metric, on a device.

    The standard detector is what lies at the official URL. Its hash is not known here; a file
    elsewhere counts as standard when it equals the one that was downloaded.

    Args:
        standard: The metric's standard detector, "inception" or "vgg16".
        choice: None for the standard one, else a TorchScript file by path or URL, or
            "torch-fidelity".
        device: Where it is to run.

    Raises:
        MetricError: It cannot be had or used.
    """
    if choice == TORCH_FIDELITY:
        return load_fidelity_detector(standard, device)
    url = STANDARD_URLS[standard]
    source = choice or url
    path = detector_file(source)
    sha256 = file_sha256(path)
    is_standard = source == url or sha256 == _sha256_if_there(cache_path(url))
    module = _load_script(path, source, device)
    stem = Path(source.split("?")[0]).name.removesuffix(".pt")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", stem) or "detector"  # it becomes a part of file names
    return Detector(
        module=module,
        name="" if is_standard else stem,
        sha256=sha256,
        source=source,
        device=device,
        widths=_STANDARD_WIDTHS[standard] if is_standard else {},
    )


def _load_script(path: Path, source: str, device: torch.device) -> Any:
    problem = _archive_problem(path)
    if problem is None:
        try:
            with warnings.catch_warnings():
                # PyTorch advises other formats; published detectors are in this one.
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(str(path), map_location=device).eval()
        except Exception as error:  # a damaged archive can raise anything
            problem = reason_of(error)
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


def _sha256_if_there(path: Path) -> str | None:
    return file_sha256(path) if os.path.isfile(path) else None
