import io

import numpy as np
import PIL.Image
import pytest
import torch

from torch_utils.image_values import pixels
from training.monitor.image_grid import grid_size, image_grid, save_image_grid, snapshot_grid


def test_image_grid_runs_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 3, 2, 4), np.uint8)
    images[:, 1] += 100
    grid = image_grid(images + 1, (3, 2))
    assert grid.shape == (4, 12, 3)
    assert grid[::2, ::4, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert grid[1::2, 3::4, 1].tolist() == [[101, 102, 103], [104, 105, 0]]


def test_image_grid_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="5 images do not fit"):
        image_grid(np.zeros((5, 3, 2, 2), np.uint8), (2, 2))
    for shape in ((3, 2, 2), (1, 2, 4, 4)):
        with pytest.raises(ValueError, match="expected"):
            image_grid(np.zeros(shape, np.uint8), (2, 2))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_saved_grid_is_a_png_of_these_pixels(tmp_path, channels, mode):
    images = torch.rand(4, channels, 5, 6) * 2 - 1
    save_image_grid(tmp_path / "grid.png", images, (2, 2))
    with PIL.Image.open(io.BytesIO((tmp_path / "grid.png").read_bytes())) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (12, 10))
        found = np.array(picture).reshape(10, 12, channels)
    assert np.array_equal(found, image_grid(images, (2, 2)))
    assert np.array_equal(found[5:, :6], pixels(images)[2].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("resolution", "size"),
    [(32, (32, 32)), (256, (30, 16)), (512, (15, 8)), (1024, (7, 4)), (2048, (7, 4))],
)
def test_grid_size(resolution, size):
    assert grid_size(resolution, resolution) == size


class Toy:
    """`count` images that show their index; labels cycle through `classes` unless None."""

    def __init__(self, count, classes=None, resolution=512):
        self.count, self.classes = count, classes
        self.image_shape = [1, resolution, resolution]
        self.has_onehot_labels = classes is not None

    def __len__(self):
        return self.count

    def get_label(self, index):
        return np.eye(self.classes or 1, self.classes or 0, dtype=np.float32)[
            index % self.classes if self.classes else 0
        ]

    def __getitem__(self, index):
        return np.full(self.image_shape, index, np.uint8), self.get_label(index)


def test_grid_without_labels_is_a_random_choice():
    size, images, labels, damage = snapshot_grid(Toy(200), seed=3)
    assert size == (15, 8) and damage == []
    assert images.shape == (120, 1, 512, 512)
    assert (labels.shape, labels.dtype) == ((120, 0), np.float32)
    indices = images[:, 0, 0, 0]
    assert len(set(indices.tolist())) == 120
    assert np.array_equal(snapshot_grid(Toy(200), seed=3)[1][:, 0, 0, 0], indices)
    assert not np.array_equal(snapshot_grid(Toy(200), seed=4)[1][:, 0, 0, 0], indices)


def test_grid_of_few_images_repeats_them():
    _, images, *_ = snapshot_grid(Toy(50), seed=0)
    assert np.bincount(images[:, 0, 0, 0]).tolist().count(0) == 0
    assert len(images) == 120


@pytest.mark.parametrize(("classes", "rows"), [(3, 3), (20, 8)])
def test_grid_with_labels_shows_one_class_a_row(classes, rows):
    size, images, labels, _ = snapshot_grid(Toy(240, classes), seed=0)
    assert size == (15, rows)
    shown = labels.reshape(rows, 15, classes).argmax(axis=2)
    assert shown.tolist() == [[row] * 15 for row in range(rows)]
    indices = images[:, 0, 0, 0].reshape(rows, 15)
    assert (indices % classes == shown).all()
    assert len(set(indices[0].tolist())) == min(15, 240 // classes)


def test_grid_fits_the_real_data_set(tmp_path):
    dataset = pytest.importorskip("training.dataset")
    (tmp_path / "00000").mkdir()
    for index in range(6):
        image = PIL.Image.fromarray(np.full((16, 16, 3), index * 40, np.uint8))
        image.save(tmp_path / "00000" / f"img{index:08d}.png")
    labels = ", ".join(f'["00000/img{index:08d}.png", {index % 2}]' for index in range(6))
    (tmp_path / "dataset.json").write_text(f'{{"labels": [{labels}]}}')
    data = dataset.ImageFolderDataset(str(tmp_path), use_labels=True)
    size, images, found, _ = snapshot_grid(data, seed=0)
    assert size == (32, 2)
    assert images.shape == (64, 3, 16, 16)
    assert found.argmax(axis=1).tolist() == [0] * 32 + [1] * 32
