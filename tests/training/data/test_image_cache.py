import io
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from tests import make_data, tiny
from training.data.data_loader import RealImages
from training.data.image_cache import cache_images
from training.dataset import DatasetError, ImageFolderDataset


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


def with_damage(tmp_path, damaged, count=200):
    files = make_data.archive_files(make_data.pixels(count, 8, 1))
    for index in damaged:
        name = f"00000/img{index:08d}.png"
        files[name] = files[name][:45]  # the header is whole
    return make_data.write_zip(tmp_path / "d.zip", files)


def refusal(data, index):
    """What is said of a damaged image; keeps no traceback, which would keep the data set open."""
    try:
        data[index]
    except DatasetError as error:
        return str(error)
    pytest.fail("it is not refused")


def test_damaged_images_stay_damaged(tmp_path):
    path = with_damage(tmp_path, [3], count=20)
    plain, cached = ImageFolderDataset(path, xflip=True), ImageFolderDataset(path, xflip=True)
    cache_images(cached, tmp_path / "cache")
    for data in (cached, pickle.loads(pickle.dumps(cached))):
        for index in (3, 23):
            told = refusal(data, index)
            assert "img00000003.png' in" in told and told == refusal(plain, index)
        for index in {*range(40)} - {3, 23}:
            np.testing.assert_array_equal(data[index][0], plain[index][0])
    again = ImageFolderDataset(path)
    cache_images(again, tmp_path / "cache")
    assert refusal(again, 3) == refusal(plain, 3)


@pytest.mark.parametrize("damaged", [[3], [3, 77, 78], []])
def test_a_run_takes_damaged_images_as_without_it(tmp_path, caplog, damaged):
    path = with_damage(tmp_path, damaged)
    ends, warnings = [], []
    for cached in (False, True):
        data = ImageFolderDataset(path)
        if cached:
            cache_images(data, tmp_path / "cache")
        caplog.clear()
        with RealImages(data, tiny.config(batch=200), torch.device("cpu")) as batches:
            try:
                ends.append(next(batches)[0])
            except DatasetError as error:
                ends.append(str(error))
        warnings.append([record.getMessage() for record in caplog.records])
    assert warnings[0] == warnings[1] and len(warnings[0]) == min(len(damaged), 2)
    if len(damaged) > 2:  # more than 1 %
        assert ends[0] == ends[1] and ends[0].startswith("3 of 200 images are damaged")
    else:
        assert torch.equal(*ends)


def test_other_files_in_its_place_are_made_again(tmp_path, caplog):
    path, folder = tiny.write_data(tmp_path / "tiny.zip"), tmp_path / "cache"
    cache_images(opened(path), folder)
    [file] = folder.iterdir()
    good = file.read_bytes()
    foreign = tmp_path / "foreign.npy"
    np.save(foreign, np.zeros([20, 1, 8, 8]))
    replaced = {
        "truncated": lambda: file.write_bytes(good[:-100]),
        "header alone": lambda: file.write_bytes(good[:40]),
        "empty": lambda: file.write_bytes(b""),
        "text": lambda: file.write_bytes(b"hello" * 999),
        "dtype": lambda: np.save(file, np.zeros([20, 1, 8, 8])),
        "shape": lambda: np.save(file, np.zeros([19], np.load(io.BytesIO(good)).dtype)),
        "objects": lambda: np.save(file, np.array([{}] * 20), allow_pickle=True),
        "link": lambda: (file.unlink(), file.symlink_to(foreign)),
        "link to nothing": lambda: (file.unlink(), file.symlink_to(tmp_path / "none")),
        "pipe": lambda: (file.unlink(), os.mkfifo(file)),
    }
    for name, replace in replaced.items():
        replace()
        caplog.clear()
        data = opened(path)
        cache_images(data, folder)
        assert "making it again" in caplog.text, name
        same_images(data, opened(path))
        assert file.read_bytes() == good and not file.is_symlink(), name
    assert np.load(foreign).shape == (20, 1, 8, 8)
    caplog.clear()
    cache_images(opened(path), folder)
    assert not caplog.records


def test_what_the_file_holds_is_checked_image_by_image(tmp_path):
    path, folder = tiny.write_data(tmp_path / "tiny.zip"), tmp_path / "cache"
    cache_images(opened(path), folder)
    [file] = folder.iterdir()
    good = file.read_bytes()
    other = opened(tiny.write_data(tmp_path / "other.zip", classes=2))
    cache_images(other, tmp_path / "others")
    [of_other] = (tmp_path / "others").iterdir()
    zeros = good[: good.index(b"\n") + 1] + bytes(len(good) - good.index(b"\n") - 1)
    for content in (good[:-1] + bytes([good[-1] ^ 1]), zeros, of_other.read_bytes()):
        assert len(content) == len(good) and content != good
        file.write_bytes(content)
        data = opened(path)
        cache_images(data, folder)
        same_images(data, opened(path))


@pytest.mark.slow
def test_workers_that_are_spawned_get_the_path(tmp_path):
    data = opened(tiny.write_data(tmp_path / "tiny.zip", count=200, size=32))
    plain = len(pickle.dumps(data))
    cache_images(data, tmp_path / "cache")
    assert len(pickle.dumps(data)) < plain + 500  # of 200 KB
    loader = torch.utils.data.DataLoader(
        data, batch_size=200, num_workers=1, multiprocessing_context="spawn"
    )
    [(images, _)] = loader
    for index in (0, 199):
        np.testing.assert_array_equal(images[index], data[index][0])


def test_large_images_are_refused(tmp_path):
    data = opened(tiny.write_data(tmp_path / "tiny.zip", count=2, size=128))
    with pytest.raises(DatasetError, match="--cache is for images up to 64x64"):
        cache_images(data, tmp_path / "cache")


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "c"))
    cache_images(opened(tiny.write_data(tmp_path / "tiny.zip")))
    [file] = (tmp_path / "c" / "images").iterdir()
    assert file.suffix == ".npy"


def test_batches_are_the_same(tmp_path):
    path = tiny.write_data(tmp_path / "tiny.zip")
    plain, cached = opened(path), opened(path)
    cache_images(cached, tmp_path / "cache")
    drawn = []
    for data in (plain, cached):
        with RealImages(data, tiny.config(cond=True), torch.device("cpu")) as batches:
            drawn.append([next(batches) for _ in range(4)])
    torch.testing.assert_close(*drawn, rtol=0, atol=0)
