"""Speed and memory of the metrics: matrix square root, precision and recall, features a second.

    python benchmarks/metrics.py --out=benchmarks/results/metrics.json

Each part runs in a process of its own, so that its peak memory is its own; parts that are in the
file already are kept, and measured again only when named by --part.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DIM_INCEPTION, DIM_VGG = 2048, 4096
MEMORY_GB = 1.0


def seconds(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """(least time of some repeats, last result)."""
    times, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def covariance(dim: int, seed: int, smallest: float) -> np.ndarray:
    """Covariance float64 [dim, dim] with eigenvalues that fall evenly, on a logarithmic scale.

    Args:
        dim: Number of dimensions.
        seed: Of the eigenvectors.
        smallest: Eigenvalue; the largest is 1.
    """
    rng = np.random.RandomState(seed)
    q, _ = np.linalg.qr(rng.randn(dim, dim))
    matrix = (q * np.geomspace(1, smallest, dim)) @ q.T
    return (matrix + matrix.T) / 2


def matrix_root(dim: int, smallest: float) -> dict[str, Any]:
    """Trace of the root of a product of covariances, ours against scipy.linalg.sqrtm."""
    import scipy.linalg

    from metrics.measures.frechet import trace_of_root

    a, b = covariance(dim, 0, smallest), covariance(dim, 1, smallest)
    ours, value = seconds(lambda: trace_of_root(a, b), repeats=3)
    theirs, root = seconds(lambda: np.asarray(scipy.linalg.sqrtm(a @ b)), repeats=2)
    expected = np.trace(root).real
    return {
        "dimensions": dim,
        "condition": 1 / smallest,
        "ours_seconds": ours,
        "scipy_seconds": theirs,
        "scipy_over_ours": theirs / ours,
        "relative_difference": abs(value - expected) / expected,
        "scipy_result_is_complex": bool(np.iscomplexobj(root)),
    }


def blocked_distances(count: int) -> dict[str, Any]:
    """Precision and recall of two sets, by blocks within the bound; peak memory beside them."""
    from metrics.measures.precision_recall import precision_recall
    from metrics.registry import ComputeSettings

    rng = np.random.RandomState(0)
    real, generated = (
        np.concatenate([rng.randn(1000, DIM_VGG).astype(np.float32) for _ in range(count // 1000)])
        for _ in range(2)
    )
    before = peak_gb()
    settings = ComputeSettings(memory_bytes=int(MEMORY_GB * 2**30))
    taken, _ = seconds(lambda: precision_recall(real, generated, 3, settings))
    return {
        "images_a_side": count,
        "dimensions": DIM_VGG,
        "memory_option_gb": MEMORY_GB,
        "seconds": taken,
        "features_float16_gb": 2 * count * DIM_VGG * 2 / 2**30,
        "peak_beside_float32_features_gb": peak_gb() - before,
        "all_pairs_at_once_gb": count * count * 4 / 2**30,
    }


def peak_gb() -> float:
    """Most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def features() -> dict[str, Any]:
    """Rates of the parts of a measurement on the digits, with a detector trained for them."""
    import torch

    from metrics.classifier import Classifier, save_detector
    from metrics.detectors import load_detector
    from metrics.features import collect
    from metrics.generated import GeneratedFeatures, Latents
    from metrics.moments import MomentsAccumulator
    from metrics.sources import ImageFiles
    from torch_utils.sampler import sampler_of
    from training.dataset import ImageFolderDataset
    from training.model import build_model
    from training.settings.config import make_config

    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/digits.zip"
        tool = [sys.executable, str(ROOT / "dataset_tool.py"), "--source=digits"]
        subprocess.run([*tool, f"--dest={data}"], check=True, capture_output=True)
        save_detector(Classifier(10, 1, 16, 16).eval(), f"{folder}/digits.pt")
        cpu = torch.device("cpu")
        detector = load_detector("inception", f"{folder}/digits.pt", cpu)
        feature_fn = partial(detector, output="features")
        files = ImageFiles(data)
        config = make_config({"data": data, "cfg": "digits", "device": "cpu"}, resolution=16)
        G = build_model(config, ImageFolderDataset(data), cpu, print).nets["G_ema"]
        producers = {
            "files": files.producer([feature_fn], files.view(True)),
            "generated": GeneratedFeatures(sampler_of(G), [feature_fn], Latents()),
        }
        rates = {}
        for name, producer in producers.items():
            taken, _ = seconds(lambda p=producer: collect(p, 1792, [{"moments"}]), repeats=3)
            rates[f"{name}_images_a_second"] = 1792 / taken
    rows = np.random.RandomState(0).randn(4096, DIM_INCEPTION).astype(np.float32)
    taken, _ = seconds(lambda: MomentsAccumulator().add(rows))
    return rates | {"vectors_of_2048_into_moments_a_second": 4096 / taken}


PARTS = {
    "matrix root, 2048 dimensions, well-conditioned": lambda: matrix_root(2048, 1e-4),
    "matrix root, 2048 dimensions, nearly singular": lambda: matrix_root(2048, 1e-10),
    "features, digits 16x16": features,
    "precision and recall, 10k": lambda: blocked_distances(10_000),
    "precision and recall, 50k": lambda: blocked_distances(50_000),
}


@click.command()
@click.option("--out", type=Path, required=True, help="JSON file to add results to")
@click.option("--part", type=click.Choice(list(PARTS)), multiple=True, help="Measure these again")
@click.option("--child", hidden=True, type=click.Choice(list(PARTS)))
def main(out: Path, part: tuple[str, ...], child: str | None) -> None:
    """Measure what is missing in the file."""
    if child:
        print(json.dumps(PARTS[child]()))
        return
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in part or [name for name in PARTS if name not in results]:
        command = [sys.executable, __file__, f"--out={out}", f"--child={name}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1]) | machine()
        out.write_text(json.dumps(results, indent=1) + "\n")
        click.echo(f"{name}: {json.dumps(results[name])}")


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    import scipy
    import torch

    return {
        "device": f"CPU {cpu_name()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "date": date.today().isoformat(),
    }


def cpu_name() -> str:
    """Model name of the processor where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
