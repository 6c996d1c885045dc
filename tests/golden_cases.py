"""Access to the golden numbers in tests/golden and the measure that they are compared with."""

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN_DIR = Path(__file__).parent / "golden"


def load_cases(name: str) -> list[tuple[dict, dict[str, np.ndarray]]]:
    """Cases of `tests/golden/NAME.npz`: (meta, arrays by name) of each, in order."""
    with np.load(GOLDEN_DIR / f"{name}.npz") as archive:
        metas = json.loads(archive["meta"].tobytes().decode("utf-8"))
        cases = [(meta, {}) for meta in metas]
        for key in archive.files:
            index, _, array_name = key.partition("/")
            if array_name:
                cases[int(index)][1][array_name] = archive[key]
    return cases


def relative_error(a, b) -> float:
    """max |a - b| / max |b| of two arrays or tensors, `b` being the reference."""
    a, b = (
        v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for v in (a, b)
    )
    assert a.shape == b.shape, f"shapes differ: {a.shape} and {b.shape}"
    if b.size == 0:
        return 0.0
    difference = np.abs(a.astype(np.float64) - b).max()
    scale = np.abs(b.astype(np.float64)).max()
    return float(difference / scale) if scale > 0 else float(difference)
