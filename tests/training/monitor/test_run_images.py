import numpy as np
import PIL.Image
import pytest
import torch

from tests import tiny
from training.dataset import ImageFolderDataset
from training.monitor.run_images import RunImages

CPU = torch.device("cpu")
GRID = (32, 3)  # one row a class


@pytest.fixture
def dataset(tmp_path):
    return ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"), use_labels=True)


def images(dataset, folder, **options):
    return RunImages(folder, dataset, **dict(seed=0, batch=50, device=CPU) | options)


def read(path):
    with PIL.Image.open(path) as picture:
        assert picture.mode == "L"
        return np.array(picture)


def test_reals(dataset, tmp_path):
    images(dataset, tmp_path).save_reals()
    pixels = read(tmp_path / "reals.png")
    assert pixels.shape == (GRID[1] * 8, GRID[0] * 8)
    stored = {dataset[i][0].tobytes() for i in range(len(dataset))}
    cells = [c for row in np.split(pixels, GRID[1]) for c in np.split(row, GRID[0], axis=1)]
    assert {np.ascontiguousarray(cell).tobytes() for cell in cells} == stored


def test_fakes_are_always_of_the_same_latents(dataset, tmp_path):
    G, _ = tiny.networks(c_dim=3)
    G.eval()
    grids = images(dataset, tmp_path)
    grids.save_fakes(G, "a.png")
    torch.manual_seed(1)
    grids.save_fakes(G, "b.png")
    images(dataset, tmp_path, batch=7).save_fakes(G, "c.png")
    images(dataset, tmp_path, seed=1).save_fakes(G, "d.png")
    a, b, c, d = (read(tmp_path / f"{name}.png").astype(int) for name in "abcd")
    assert a.shape == (GRID[1] * 8, GRID[0] * 8) and a.std() > 1
    assert (a == b).all()
    assert np.abs(a - c).max() <= 1, "the batch changes nothing but rounding"
    assert np.abs(a - d).max() > 10


def test_drawing_pictures_leaves_the_random_stream_of_training_alone(dataset, tmp_path):
    G, _ = tiny.networks(c_dim=3)
    before = torch.get_rng_state()
    images(dataset, tmp_path).save_fakes(G.eval(), "a.png")
    assert torch.equal(before, torch.get_rng_state())
