"""The compilers, libraries and GPUs that native operators are built with and for."""

import dataclasses
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "src"
HEADERS = ("*.h", "*.inl")
CXX_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math")
# Line numbers help profilers. PyTorch forbids conversions from and to half precision, which would
# be ambiguous beside its own types; the kernels do not know those, and need the conversions.
CUDA_FLAGS = (
    "-O3",
    "-lineinfo",
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_HALF2_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
)


@dataclass(frozen=True)
class Toolchain:
    """What a build of the operators for one type of device would use.

    Fields that are None are missing; `problems` says so in words that name the remedy.
    """

    device_type: str
    """'cpu' or 'cuda'."""
    compiler: tuple[str, ...] | None
    """C++ compiler: the variable CXX, else c++."""
    compiler_version: str | None
    ninja: str | None
    nvcc: str | None = None
    nvcc_version: str | None = None
    architectures: str = ""
    """For TORCH_CUDA_ARCH_LIST, e.g. '9.0': that variable, else the GPUs of this machine."""
    problems: tuple[str, ...] = ()

    @property
    def sources(self) -> list[Path]:
        """Files to compile."""
        names = ("cpu_*.cpp",) if self.device_type == "cpu" else ("cuda_*.cpp", "*.cu")
        return sorted(path for name in names for path in SOURCES.glob(name))

    @property
    def cxx_flags(self) -> tuple[str, ...]:
        """Flags of the C++ compiler. Threads are OpenMP's, from the library that torch has."""
        openmp = torch.backends.openmp.is_available() and sys.platform == "linux"
        return (*CXX_FLAGS, "-fopenmp") if openmp else CXX_FLAGS

    def key(self) -> str:
        """Short hash of everything that a library depends on."""
        parts = [self.device_type, self.compiler, self.compiler_version, self.cxx_flags]
        parts += [self.nvcc, self.nvcc_version, self.architectures, CUDA_FLAGS]
        parts += [torch.__version__, torch.version.cuda, platform.machine()]
        digest = hashlib.sha256(repr(parts).encode())
        headers = [path for name in HEADERS for path in SOURCES.glob(name)]
        for path in sorted({*headers, *self.sources}):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def find(device_type: str) -> Toolchain:
    """Look for what a build for 'cpu' or 'cuda' needs on this machine."""
    compiler = tuple(shlex.split(os.environ.get("CXX") or "c++"))
    version = _version((*compiler, "--version"))
    ninja = shutil.which("ninja", path=search_path())
    problems = []
    if version is None:
        problems.append(
            f"there is no working C++ compiler ({shlex.join(compiler)}): install one (Debian, "
            "Ubuntu: apt install g++; conda: conda install cxx-compiler) or name it in CXX"
        )
    if ninja is None or _version((ninja, "--version")) is None:
        problems.append("ninja is missing: pip install ninja")
    found = Toolchain(device_type, compiler if version else None, version, ninja)
    if device_type == "cuda":
        found, more = _with_cuda(found)
        problems += more
    return dataclasses.replace(found, problems=tuple(problems))


def _with_cuda(found: Toolchain) -> tuple[Toolchain, list[str]]:
    if torch.version.cuda is None:
        return found, ["this PyTorch is built without CUDA: install one with it"]
    from torch.utils.cpp_extension import CUDA_HOME

    problems = []
    nvcc = None if CUDA_HOME is None else os.path.join(CUDA_HOME, "bin", "nvcc")
    version = None if nvcc is None else _version((nvcc, "--version"))
    if version is None:
        problems.append(
            f"the CUDA compiler nvcc is missing: install the CUDA toolkit {torch.version.cuda} or "
            "name its folder in CUDA_HOME"
        )
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or present_architectures()
    if not architectures:
        problems.append("no GPU is visible: name architectures, e.g. TORCH_CUDA_ARCH_LIST=9.0")
    found = dataclasses.replace(
        found, nvcc=nvcc if version else None, nvcc_version=version, architectures=architectures
    )
    return found, problems


def present_architectures() -> str:
    """Architectures of the GPUs of this machine, for TORCH_CUDA_ARCH_LIST; '' without any."""
    if not torch.cuda.is_available():
        return ""
    pairs = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return " ".join(f"{major}.{minor}" for major, minor in sorted(pairs))


def search_path() -> str:
    """PATH, and before it the folder of this Python, where pip has put ninja."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


@functools.lru_cache(maxsize=16)
def _version(command: tuple[str, ...]) -> str | None:
    """What a program says about its version; None if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
