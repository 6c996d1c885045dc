"""A recorded run: changes that claim not to alter results must leave its numbers where they are.

python tests/training/test_golden_run.py    records them anew, for a change that does alter them
"""

import json
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from training.dataset import ImageFolderDataset
from training.monitor.curves import read_stats
from training.settings.config import make_config
from training.training_loop import end_tick, iterate
from training.training_run import TrainingRun

RECORD = Path(__file__).parent.parent / "golden" / "run.json"
QUANTITIES = (
    "Loss/scores/real",
    "Loss/scores/fake",
    "Loss/G/loss",
    "Loss/D/loss",
    "Loss/r1_penalty",
    "Loss/pl_penalty",
    "Coop/energy_gap",
    "Coop/displacement",
    "Coop/grad_norm/Gmain",
    "Loss/grad_norm/Dmain",
)


def train(folder, ops):
    """Twelve iterations, half of them cooperative, on 32x32 noise with labels."""
    rng = np.random.RandomState(0)
    data = folder / "data"
    data.mkdir()
    for index in range(32):
        image = rng.randint(0, 256, [4, 4, 3], dtype=np.uint8)
        PIL.Image.fromarray(np.kron(image, np.ones([8, 8, 1], np.uint8))).save(
            data / f"img{index:08d}.png"
        )
    labels = [[f"img{index:08d}.png", index % 3] for index in range(32)]
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    settings = dict(
        data=str(data),
        cond=True,
        mirror=True,
        cfg="digits",
        z_dim=16,
        w_dim=16,
        g_scale=1 / 64,
        d_scale=1 / 64,
        batch=16,
        kimg=2,
        coop_kimg=1,
        coop_steps=3,
        gamma=1.0,
        pl_weight=2.0,
        aug="noaug",
        style_mixing=0.9,
        d_arch="resnet",
        workers=0,
        g_reg_interval=2,
        d_reg_interval=2,
        ops=ops,
    )
    config = make_config(settings, resolution=32)
    dataset = ImageFolderDataset(str(data), use_labels=True, xflip=True)
    run_dir = folder / "run"
    run_dir.mkdir()
    (run_dir / "training_options.json").write_text(config.to_json())
    run = TrainingRun(config, dataset, run_dir)
    with run.reporter, run.data:
        for nimg in (0, config.coop_kimg * 1000):
            run.state.progress.nimg = nimg
            run.enter_stage()
            for _ in range(6):
                iterate(run)
            end_tick(run)
    ticks = read_stats(run_dir)
    return [{name: tick[name]["mean"] for name in QUANTITIES if name in tick} for tick in ticks]


@pytest.mark.parametrize("ops", ["ref", "native"])
def test_recorded_numbers_stay(tmp_path, ops, request):
    if ops == "native":
        request.getfixturevalue("native")
    recorded = json.loads(RECORD.read_text())
    for tick, expected in zip(train(tmp_path, ops), recorded, strict=True):
        assert tick.keys() == expected.keys()
        for name, value in expected.items():
            # Processors differ in the last digits of float32, and twelve iterations amplify them.
            assert tick[name] == pytest.approx(value, rel=5e-3, abs=1e-4), name


if __name__ == "__main__":
    import tempfile

    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        RECORD.write_text(json.dumps(train(Path(folder), "ref"), indent=1) + "\n")
