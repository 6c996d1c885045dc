import copy

import numpy as np
import PIL.Image
import pytest
import torch

from models.grid_preview import GridPreview
from models.stylegan2.sampler import StyleGAN2Sampler
from tests import tiny
from training.dataset import ImageFolderDataset

GRID = (32, 3)  # one row a class


@pytest.fixture
def dataset(tmp_path):
    return ImageFolderDataset(tiny.write_data(tmp_path / "tiny.zip"), use_labels=True)


def grid(dataset, G, **options):
    G.eval()
    sampler = StyleGAN2Sampler(G)
    options = dict(seed=0, batch=50) | options
    return GridPreview(dataset, averaged=sampler, current=sampler, **options)


@pytest.fixture
def G():
    return tiny.networks(c_dim=3)[0]


def read(path):
    with PIL.Image.open(path) as picture:
        assert picture.mode == "L"
        return np.array(picture)


def test_reals(dataset, G, tmp_path):
    grid(dataset, G).save_reals(tmp_path / "reals.png")
    pixels = read(tmp_path / "reals.png")
    assert pixels.shape == (GRID[1] * 8, GRID[0] * 8)
    stored = {dataset[i][0].tobytes() for i in range(len(dataset))}
    cells = [c for row in np.split(pixels, GRID[1]) for c in np.split(row, GRID[0], axis=1)]
    assert {np.ascontiguousarray(cell).tobytes() for cell in cells} == stored


def test_fakes_are_always_of_the_same_latents(dataset, G, tmp_path):
    preview = grid(dataset, G)
    preview.save_fakes(tmp_path / "a.png")
    torch.manual_seed(1)
    preview.save_fakes(tmp_path / "b.png")
    grid(dataset, G, batch=7).save_fakes(tmp_path / "c.png")
    grid(dataset, G, seed=1).save_fakes(tmp_path / "d.png")
    a, b, c, d = (read(tmp_path / f"{name}.png").astype(int) for name in "abcd")
    assert a.shape == (GRID[1] * 8, GRID[0] * 8) and a.std() > 1
    assert (a == b).all()
    assert np.abs(a - c).max() <= 1, "the batch changes nothing but rounding"
    assert np.abs(a - d).max() > 10


def test_drawing_pictures_leaves_training_alone(dataset, G, tmp_path):
    before, state = torch.get_rng_state(), copy.deepcopy(G.state_dict())
    preview = grid(dataset, G)
    G.train()
    preview.save_fakes(tmp_path / "a.png")
    assert 0.3 < preview.diversity() < 3
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in G.state_dict().items())
