"""What `python -m torch_utils.ops doctor` says."""

import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from torch_utils.ops.native import build, toolchain
from torch_utils.ops.native.toolchain import Toolchain


def report() -> str:
    """Versions, then for each type of device what is there and what to do."""
    lines = [
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"CUDA {torch.version.cuda or 'none'}",
        f"Cache: {_cache()} (set TORCH_EXTENSIONS_DIR to move it)",
    ]
    for device_type in ("cpu", "cuda"):
        lines += ["", *_device(device_type)]
    return "\n".join(lines)


def _cache() -> Path | str:
    try:
        return build.cache_folder()
    except RuntimeError as error:  # there is no home folder
        return f"none, {build.first_line(error)}"


def _device(device_type: str) -> Iterator[str]:
    found = toolchain.find(device_type)
    yield f"{device_type}: {_verdict(found)}"
    version = (found.compiler_version or "missing").splitlines()[0]
    yield f"  C++ compiler   {' '.join(found.compiler or ())} {version}".rstrip()
    yield f"  ninja          {found.ninja or 'missing'}"
    if device_type == "cuda":
        yield f"  nvcc           {(found.nvcc_version or 'missing').splitlines()[-1]}"
        yield f"  architectures  {found.architectures or 'none'}"
    for problem in found.problems:
        yield f"  To do: {problem}."


def _verdict(found: Toolchain) -> str:
    if found.problems:
        return "native operators cannot be built; plain PyTorch is used"
    try:
        folder = build.folder_of(found)
        built = build.library_in(folder).exists()
    except (OSError, RuntimeError) as error:
        return f"the cache cannot be used ({build.first_line(error)}): set TORCH_EXTENSIONS_DIR"
    if built:
        return f"native operators are built: {build.library_in(folder)}"
    if failure := build.remembered_failure(folder):
        return f"the last build failed. {failure}"
    return f"native operators will be built on first use; now: {build.RETRY}"
