import json
import os
import zipfile

import numpy as np
import PIL.Image
import pytest

from metrics import MetricError
from metrics.sources import FeatureFile, ImageFiles
from tests import make_data
from training.dataset import ImageFolderDataset


def pixels_of(images, start):
    """Instead of a detector: the pixels themselves."""
    return images.flatten(1).float().numpy()


def features(files, full=True):
    producer = files.producer([pixels_of], files.view(full))
    return producer.rows(0, len(producer))[0]


def write(path, images, **json_fields):
    files = {f"{i:03d}.png": make_data.encode(image) for i, image in enumerate(images)}
    if json_fields:
        files["dataset.json"] = json.dumps(json_fields).encode()
    return make_data.write_zip(path, files)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_and_a_zip_of_the_same_images(tmp_path, channels):
    images = make_data.pixels(5, 8, channels)
    archive = ImageFiles(write(tmp_path / "a.zip", images))
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        file.extractall(tmp_path / "folder")
    folder = ImageFiles(tmp_path / "folder")
    assert archive.size == folder.size == (8, 8)
    expected = images.reshape(5, 8, 8, channels).transpose(0, 3, 1, 2).reshape(5, -1)
    for files in (archive, folder):
        np.testing.assert_array_equal(features(files), expected)


def test_images_need_not_be_square_or_a_power_of_two(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, [3, 5, 7, 3], np.uint8)
    files = ImageFiles(write(tmp_path / "a.zip", images))
    assert files.size == (7, 5) and files.decode(0).shape == (3, 5, 7)


def test_alpha_is_dropped(tmp_path):
    rgb = make_data.pixels(1, 8)[0]
    rgba = np.concatenate([rgb, np.zeros([8, 8, 1], np.uint8)], axis=2)
    files = ImageFiles(write(tmp_path / "a.zip", [rgba]))
    np.testing.assert_array_equal(files.decode(0), rgb.transpose(2, 0, 1))


def test_grey_among_rgb_becomes_rgb(tmp_path):
    grey, rgb = make_data.pixels(1, 8, 1)[0], make_data.pixels(1, 8)[0]
    rows = features(ImageFiles(write(tmp_path / "a.zip", [grey, rgb])))
    np.testing.assert_array_equal(rows[0], np.tile(grey.flatten(), 3))
    np.testing.assert_array_equal(rows[1], rgb.transpose(2, 0, 1).flatten())


def test_the_view_of_training_is_the_training_data_set(tmp_path):
    images = make_data.pixels(9, 8, 1)
    path = make_data.write_zip(tmp_path / "a.zip", make_data.archive_files(images, [0, 1, 2] * 3))
    view = dict(max_size=5, xflip=True, random_seed=3)
    files, dataset = ImageFiles(path, **view), ImageFolderDataset(path, use_labels=True, **view)
    expected = [dataset[i][0].flatten() for i in range(len(dataset))]
    np.testing.assert_array_equal(features(files, full=False), expected)
    np.testing.assert_array_equal(files.labels(full=False), dataset.raw_labels)
    assert len(features(files)) == 9 and files.labels(full=True).tolist() == [0, 1, 2] * 3


def test_any_portion_of_the_images(tmp_path):
    files = ImageFiles(write(tmp_path / "a.zip", make_data.pixels(9, 8, 1)))
    producer = files.producer([pixels_of], files.view(True))
    [whole] = producer.rows(0, 9)
    producer.prepare(4, 6)
    np.testing.assert_array_equal(producer.rows(4, 6)[0], whole[4:6])
    np.testing.assert_array_equal(producer.rows(4, 6)[0], whole[4:6])


def test_the_digest_follows_names_and_contents(tmp_path):
    images = make_data.pixels(3, 8)
    digest = ImageFiles(write(tmp_path / "a.zip", images)).digest()
    assert ImageFiles(write(tmp_path / "b.zip", images)).digest() == digest
    changed = images.copy()
    changed[2, 7, 7, 0] ^= 1
    assert ImageFiles(write(tmp_path / "c.zip", changed)).digest() != digest
    assert ImageFiles(write(tmp_path / "d.zip", images[:2])).digest() != digest
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        file.extractall(tmp_path / "folder")
    before = ImageFiles(tmp_path / "folder").digest()
    stat = os.stat(tmp_path / "folder" / "002.png")
    PIL.Image.fromarray(changed[2]).save(tmp_path / "folder" / "002.png", compress_level=6)
    os.utime(tmp_path / "folder" / "002.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert ImageFiles(tmp_path / "folder").digest() != before


@pytest.mark.parametrize(
    ("original", "resampling"), [([8, 8], "none"), ([20, 30], "box"), (None, "box")]
)
def test_the_recorded_filter_counts_where_something_was_resized(tmp_path, original, resampling):
    meta = {"resize_filter": "box", "original_size": {"width": original, "height": original}}
    path = write(tmp_path / "a.zip", make_data.pixels(2, 8), labels=None, meta=meta)
    assert ImageFiles(path).resampling == resampling


@pytest.mark.parametrize("fields", [{}, {"labels": None}, {"labels": None, "meta": 3}])
def test_without_a_record_the_filter_is_unknown(tmp_path, fields):
    assert (
        ImageFiles(write(tmp_path / "a.zip", make_data.pixels(2, 8), **fields)).resampling is None
    )


def test_unusable_images(tmp_path):
    good = make_data.pixels(2, 8)
    with pytest.raises(MetricError, match="does not exist"):
        ImageFiles(tmp_path / "no.zip")
    with pytest.raises(MetricError, match="holds no images"):
        ImageFiles(make_data.write_zip(tmp_path / "empty.zip", {"a.txt": b""}))
    mixed = [good[0], make_data.pixels(1, 16)[0]]
    with pytest.raises(MetricError, match="mixes sizes .8x8, 16x16.* dataset_tool.py"):
        ImageFiles(write(tmp_path / "mixed.zip", mixed))
    with pytest.raises(MetricError, match="image 0 .'a.png'.* cannot be read"):
        ImageFiles(make_data.write_zip(tmp_path / "bad.zip", {"a.png": b"no image"}))
    with pytest.raises(MetricError, match="lacks labels"):
        ImageFiles(write(tmp_path / "good.zip", good)).labels(full=True)
    with pytest.raises(MetricError, match="subset must have 1 to 2 images"):
        ImageFiles(tmp_path / "good.zip", max_size=3)


def test_an_image_that_is_cut_off_is_named(tmp_path):
    files = {f"{i}.png": make_data.encode(image) for i, image in enumerate(make_data.pixels(3, 8))}
    files["1.png"] = files["1.png"][:60]
    with pytest.raises(MetricError, match="image 1 .'1.png' in .*cannot be read"):
        features(ImageFiles(make_data.write_zip(tmp_path / "a.zip", files)))


def test_features(tmp_path):
    rows = np.random.RandomState(0).randn(7, 3)
    np.savez(tmp_path / "plain.npz", features=rows)
    np.testing.assert_allclose(FeatureFile(tmp_path / "plain.npz").rows, rows, rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(other=np.ones([3, 2])), "no array called features"),
        (dict(features=np.ones([3])), r"shape \[3\]"),
        (dict(features=np.ones([0, 2])), r"shape \[0, 2\]"),
        (dict(features=np.array([["a", "b"]])), "real numbers"),
        (dict(features=np.array([[object()]])), "no readable .npz"),
        (dict(features=np.array([[1.0], [np.nan], [1.0]])), "feature vector 1 is not finite"),
        (dict(features=np.array([[1.0], [1e300]])), "feature vector 1 is not finite"),
    ],
)
def test_features_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(MetricError, match=message):
        FeatureFile(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and then nothing"])
def test_files_that_hold_no_features(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(MetricError, match="no readable .npz file"):
        FeatureFile(tmp_path / "a.npz")
