import pickle
import shutil

import numpy as np
import pytest
import torch

from tests import make_data, tiny
from training.data_loader import RealImages
from training.dataset import DatasetError, ImageFolderDataset
from training.image_cache import cache_folder, cache_images


def opened(path, **options):
    return ImageFolderDataset(path, use_labels=True, **options)


def same_images(a, b):
    assert len(a) == len(b)
    for index in range(len(a)):
        for one, other in zip(a[index], b[index], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("options", [{}, dict(xflip=True, max_size=7, random_seed=3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_images_are_the_same(tmp_path, options, channels):
    path = tiny.write_data(tmp_path / "tiny.zip", channels=channels)
    data = opened(path, **options)
    cache_images(data, tmp_path / "cache")
    same_images(data, opened(path, **options))
    same_images(pickle.loads(pickle.dumps(data)), data)  # as workers get it


def test_one_file_for_all_that_show_the_same_images(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    path = tiny.write_data(tmp_path / "tiny.zip")
    cache_images(opened(path), folder)
    shutil.copy(path, tmp_path / "copy.zip")
    monkeypatch.setattr(ImageFolderDataset, "decode_file", lambda *args: 1 / 0)
    for other in (opened(path, xflip=True), opened(tmp_path / "copy.zip", max_size=3)):
        cache_images(other, folder)
        assert other[0][0].shape == (1, 8, 8)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("kind", [make_data.write_folder, make_data.write_zip])
def test_other_content_is_never_taken_for_the_old_one(tmp_path, kind):
    files = make_data.archive_files(make_data.pixels(3, 8, 1), labels=[0, 1, 0])
    name = next(iter(files))
    changed = bytearray(files[name])
    for seed in range(100):  # of the same size
        new = make_data.encode(make_data.pixels(1, 8, 1, seed)[0])
        if len(new) == len(changed) and new != changed:
            break
    else:
        pytest.fail("no image of the same size")
    before, after = (tmp_path / f"{part}.zip" for part in ("before", "after"))
    first, second = opened(kind(before, files)), opened(kind(after, files | {name: new}))
    for data in (first, second):
        cache_images(data, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not np.array_equal(first[0][0], second[0][0])
    same_images(second, opened(after))


def test_damaged_images_make_no_file(tmp_path):
    files = make_data.archive_files(make_data.pixels(3, 8, 1))
    files["00000/img00000001.png"] = files["00000/img00000001.png"][:45]
    data = ImageFolderDataset(make_data.write_zip(tmp_path / "d.zip", files))
    with pytest.raises(DatasetError, match="img00000001.png' in .* cannot be decoded"):
        cache_images(data, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_large_images_are_refused(tmp_path):
    data = opened(tiny.write_data(tmp_path / "tiny.zip", count=2, size=128))
    with pytest.raises(DatasetError, match="--cache is for images up to 64x64"):
        cache_images(data, tmp_path / "cache")


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path / "images"


def test_batches_are_the_same(tmp_path):
    path = tiny.write_data(tmp_path / "tiny.zip")
    plain, cached = opened(path), opened(path)
    cache_images(cached, tmp_path / "cache")
    drawn = []
    for data in (plain, cached):
        with RealImages(data, tiny.config(cond=True), torch.device("cpu")) as batches:
            drawn.append([next(batches) for _ in range(4)])
    torch.testing.assert_close(*drawn, rtol=0, atol=0)
