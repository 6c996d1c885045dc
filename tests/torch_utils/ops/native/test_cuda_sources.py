"""What can be proved of the CUDA sources without a GPU: they compile, and compute what they should.

The functions that threads run are plain C++ as well; `emulate.cpp` calls them thread by thread.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

from tests.golden_cases import relative_error
from torch_utils.ops.native.toolchain import CUDA_FLAGS, SOURCES
from torch_utils.ops.upfirdn2d import upfirdn2d

COMPILER, NVCC = shutil.which("c++"), shutil.which("nvcc")
# Factors and taps of the specialised kernels: (up, down, taps) of height and of width.
PAIRS = [((u, d, 4), (u, d, 4)) for u, d in ((2, 1), (1, 2), (1, 1))]
PAIRS += [((1, 1, 1), (u, d, 12)) for u, d in ((2, 1), (1, 2), (1, 1))]
PAIRS += [(w, h) for h, w in PAIRS[3:]]
GENERAL = [((3, 2, 5), (1, 4, 3)), ((2, 2, 3), (4, 1, 1))]


@pytest.fixture(scope="module")
def emulate(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("emulate") / "emulate.so"
    source = Path(__file__).with_name("emulate.cpp")
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", f"-I{SOURCES}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(path)], check=True)
    function = ctypes.CDLL(str(path)).emulate
    function.restype = ctypes.c_bool
    return function


def run(emulate, x, f, shapes, padding, flip, general):
    """Images [N, C, H, W] through the emulated kernel; keeps their memory format."""
    (up_y, down_y, taps_y), (up_x, down_x, taps_x) = shapes
    n, channels, height, width = x.shape
    out_y = (height * up_y + padding[2] + padding[3] - taps_y) // down_y + 1
    out_x = (width * up_x + padding[0] + padding[1] - taps_x) // down_x + 1
    last = not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    y = torch.full((n, channels, out_y, out_x), float("nan")).to(memory_format=layout)
    sizes = [n, channels, up_y, down_y, padding[2], taps_y, height, out_y]
    sizes += [up_x, down_x, padding[0], taps_x, width, out_x]
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (x, f, y))
    array = (ctypes.c_int64 * 14)(*sizes)
    assert emulate(*pointers, array, flip, ctypes.c_float(1.5), last, general)
    return y


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shapes", PAIRS + GENERAL)
def test_threads_together_compute_the_operator(emulate, shapes, layout):
    (up_y, down_y, taps_y), (up_x, down_x, taps_x) = shapes
    rng = np.random.default_rng(0)
    f = torch.tensor(rng.standard_normal([taps_y, taps_x]), dtype=torch.float32)
    # Less than a tile, tiles exactly, parts of tiles; paddings of either parity, and crops.
    for size in ((1, 1), (32, 16), (33, 70)):
        for start in (0, 3, -2, 12):
            x = torch.tensor(rng.standard_normal([2, 3, *size]), dtype=torch.float32)
            x = x.contiguous(memory_format=layout)
            padding = (start, 13, 1 - start + 12, 12)
            for flip in (False, True):
                y = run(emulate, x, f, shapes, padding, flip, shapes in GENERAL)
                expected = upfirdn2d(
                    x.double(), f, [up_x, up_y], [down_x, down_y], padding, flip, 1.5, impl="ref"
                )
                assert relative_error(y, expected) <= 2e-6


def test_the_general_kernel_does_what_the_special_ones_do(emulate):
    f, x = torch.rand(4, 4), torch.randn(1, 2, 9, 11)
    args = (x, f, PAIRS[0], (2, 1, 2, 1), False)
    assert relative_error(run(emulate, *args, False), run(emulate, *args, True)) <= 1e-6


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("name", ["bias_act.cu", "fir.cu"])
def test_compiles_for_every_architecture(name, tmp_path):
    listed = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    numbers = [int(line.removeprefix("compute_")) for line in listed.stdout.split()]
    chosen = [number for number in numbers if number >= 75]
    assert chosen
    # Translated once for a generation, then assembled for each of its architectures.
    generations = {n // 10: min(m for m in chosen if m // 10 == n // 10) for n in chosen}
    code = [f"-gencode=arch=compute_{generations[n // 10]},code=sm_{n}" for n in chosen]
    # Little optimisation: it is about whether, and takes a third of the time.
    flags = [*COMMON_NVCC_FLAGS, *CUDA_FLAGS, "-std=c++17"]  # as PyTorch builds extensions
    flags += ["-Xcicc=-O1", "-Xptxas=-O0", "--threads=2"]
    command = [NVCC, "-c", *flags, *code, str(SOURCES / name), "-o", str(tmp_path / "out.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
