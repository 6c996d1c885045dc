import io
import json
import multiprocessing
import pickle
import zlib

import numpy as np
import PIL.Image
import pytest
import torch

from tests import make_data
from tests.speed import slow
from training.data.image_files import open_store
from training.dataset import DatasetError, ImageFolderDataset


def archive(tmp_path, images, labels=None, name="data.zip"):
    return make_data.write_zip(tmp_path / name, make_data.archive_files(images, labels))


def folder(tmp_path, files):
    return make_data.write_folder(tmp_path / "data", files)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_class_labels(tmp_path, zipped, channels):
    images, labels = make_data.pixels(4, 16, channels), [2, 0, 4, 2]
    files = make_data.archive_files(images, labels)
    write = make_data.write_zip if zipped else make_data.write_folder
    dataset = ImageFolderDataset(write(tmp_path / "my.data.zip", files), use_labels=True)
    assert dataset.name == ("my.data" if zipped else "my.data.zip")
    assert dataset.image_shape == [channels, 16, 16]
    assert dataset.num_channels == channels and dataset.resolution == 16
    assert dataset.has_labels and dataset.has_onehot_labels
    assert dataset.label_shape == [5] and dataset.label_dim == 5
    assert len(dataset) == 4
    for i, (image, label) in enumerate(dataset):
        expected = images[i][None] if channels == 1 else images[i].transpose(2, 0, 1)
        np.testing.assert_array_equal(image, expected)
        assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous
        assert label.dtype == np.float32
        np.testing.assert_array_equal(label, np.eye(5)[labels[i]])
        np.testing.assert_array_equal(dataset.get_label(i), label)
    np.testing.assert_array_equal(dataset.raw_labels, labels)


def test_without_labels(tmp_path):
    dataset = ImageFolderDataset(archive(tmp_path, make_data.pixels(2, 16), [1, 2]))
    assert not dataset.has_labels and not dataset.has_onehot_labels
    assert dataset.label_shape == [0] and dataset.label_dim == 0
    assert dataset[1][1].shape == (0,) and dataset[1][1].dtype == np.float32
    assert dataset.raw_labels.shape == (2, 0)


def test_vector_labels(tmp_path):
    labels = [[0.5, -1], [2, 3.25]]
    path = archive(tmp_path, make_data.pixels(2, 16), labels)
    dataset = ImageFolderDataset(path, use_labels=True)
    assert dataset.has_labels and not dataset.has_onehot_labels and dataset.label_shape == [2]
    for i in range(2):
        np.testing.assert_array_equal(dataset[i][1], np.float32(labels[i]))


def test_any_tree_of_jpegs_and_pngs(tmp_path):
    images = make_data.pixels(2, 16)
    files = {"b.png": make_data.encode(images[1]), "a/x.JPG": make_data.encode(images[0], "jpeg")}
    dataset = ImageFolderDataset(folder(tmp_path, {**files, "notes.txt": b"text"}))
    assert len(dataset) == 2
    np.testing.assert_array_equal(dataset[1][0], images[1].transpose(2, 0, 1))
    decoded = np.asarray(PIL.Image.open(io.BytesIO(files["a/x.JPG"])))
    np.testing.assert_array_equal(dataset[0][0], decoded.transpose(2, 0, 1))


def test_subset_is_drawn_by_the_seed(tmp_path):
    path = archive(tmp_path, make_data.pixels(30, 8), list(range(30)))

    def chosen(seed, size=10):
        dataset = ImageFolderDataset(path, use_labels=True, max_size=size, random_seed=seed)
        assert len(dataset) == size and dataset.label_dim == 30
        return dataset.raw_labels.tolist()

    assert chosen(0) == chosen(0) == sorted(set(chosen(0))) != chosen(1)
    assert chosen(5, size=30) == list(range(30))
    # The subset of a seed is part of published results and must never move.
    assert chosen(0) == [2, 10, 11, 13, 17, 22, 24, 26, 27, 28]


def test_xflip_appends_mirrored_copies(tmp_path):
    path = archive(tmp_path, make_data.pixels(5, 8), [0, 1, 2, 3, 4])
    plain = ImageFolderDataset(path, use_labels=True, max_size=3)
    dataset = ImageFolderDataset(path, use_labels=True, max_size=3, xflip=True)
    assert len(dataset) == 6
    for i in range(3):
        np.testing.assert_array_equal(dataset[i][0], plain[i][0])
        np.testing.assert_array_equal(dataset[i + 3][0], plain[i][0][:, :, ::-1])
        np.testing.assert_array_equal(dataset[i + 3][1], plain[i][1])
    np.testing.assert_array_equal(dataset[-1][0], dataset[5][0])


def _sum_of_images(dataset, queue):
    queue.put(sum(int(dataset[i][0].sum()) for i in range(len(dataset))))


@pytest.mark.parametrize("method", ["fork", slow("spawn")])
def test_worker_processes_open_their_own_handle(tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    images = make_data.pixels(20, 8)
    dataset = ImageFolderDataset(archive(tmp_path, images))
    assert dataset[0][0].shape == (3, 8, 8)  # the parent's handle is open
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=5, num_workers=2, multiprocessing_context=method
    )
    batches = [images for images, _ in loader]
    np.testing.assert_array_equal(torch.cat(batches).numpy(), images.transpose(0, 3, 1, 2))


def test_pickling_takes_no_handle_along(tmp_path):
    dataset = ImageFolderDataset(archive(tmp_path, make_data.pixels(2, 8)))
    expected = dataset[1][0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[1][0], expected)


def test_a_forked_process_opens_its_own_handle(tmp_path, monkeypatch):
    store = open_store(archive(tmp_path, make_data.pixels(1, 8)))
    handle = store._handle()
    assert store._handle() is handle
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert store._handle() is not handle


def png16(mode):
    """A 16-bit RGB PNG, which Pillow cannot write, or a 16-bit grey one."""
    if mode == "I;16":
        return make_data.encode(PIL.Image.fromarray(np.zeros((16, 16), np.uint16)))
    header = b"IHDR" + bytes((0, 0, 0, 16, 0, 0, 0, 16, 16, 2, 0, 0, 0))
    rows = b"IDAT" + zlib.compress(bytes(16 * (1 + 16 * 6)))
    chunks = [(header, 13), (rows, len(rows) - 4), (b"IEND", 0)]
    data = b"\x89PNG\r\n\x1a\n"
    for chunk, size in chunks:
        data += size.to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return data


def image_of(mode, size=16):
    return make_data.encode(PIL.Image.new(mode, (size, size)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images"),
        ({"a.png": b"damaged"}, r"'a\.png'.*damaged or no image"),
        ({"a.png": b""}, r"'a\.png'.*damaged or no image"),
        ({"a.png": image_of("RGBA")}, r"'a\.png'.*alpha channel.*dataset_tool"),
        ({"a.png": image_of("LA")}, "alpha channel"),
        ({"a.png": image_of("P")}, r"'a\.png'.*mode P.*dataset_tool"),
        ({"a.png": image_of("1")}, "1 bits"),
        ({"a.png": png16("I;16")}, "16 bits"),
        ({"a.png": png16("RGB")}, "16 bits"),
        (
            {"a.jpg": make_data.encode(PIL.Image.new("CMYK", (16, 16)), "jpeg")},
            "mode CMYK.*dataset_tool",
        ),
        ({"a.png": image_of("RGB"), "b.png": image_of("L")}, r"mixes.*'b\.png' \(16x16 grey\)"),
        (
            {"a.png": image_of("L"), "b.png": image_of("L", 32), "c.png": image_of("L", 8)},
            r"2 of 3 differ from 'a\.png' \(16x16 grey\), such as 'b\.png' \(32x32 grey\)",
        ),
        ({"a.png": make_data.encode(PIL.Image.new("L", (16, 8)))}, "16x8; they must be square"),
        ({"a.png": image_of("L", 24)}, "24x24.*power of two"),
        ({"a.png": image_of("L", 4)}, "4x4.*power of two from 8"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_unusable_images_are_refused_at_once(tmp_path, files, message, zipped):
    if zipped:
        path = make_data.write_zip(tmp_path / "data.zip", files)
    else:
        (tmp_path / "data").mkdir()
        path = folder(tmp_path, files)
    with pytest.raises(DatasetError, match=message) as error:
        ImageFolderDataset(path)
    assert "\n" not in str(error.value)


def test_unusable_paths_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        ImageFolderDataset(tmp_path / "absent.zip")
    path = archive(tmp_path, make_data.pixels(2, 16))
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(DatasetError, match="neither a folder nor a complete zip"):
        ImageFolderDataset(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels in dataset.json"),
        ([["00000/img00000000.png", 1]], r"lacks labels for 1 of 2 images, such as '.*01\.png'"),
        ([["00000/img00000000.png", -1], ["00000/img00000001.png", 1]], "integer from 0"),
        ([["00000/img00000000.png", 1], ["00000/img00000001.png", [1]]], "mixes kinds"),
    ],
)
def test_unusable_labels_are_refused(tmp_path, labels, message):
    files = make_data.archive_files(make_data.pixels(2, 16))
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    path = folder(tmp_path, files)
    with pytest.raises(DatasetError, match=message):
        ImageFolderDataset(path, use_labels=True)
    assert len(ImageFolderDataset(path)) == 2


def test_unusable_arguments_are_refused(tmp_path):
    path = archive(tmp_path, make_data.pixels(2, 16))
    for arguments, message in [
        ({"resolution": 32}, "16x16, not 32x32"),
        ({"max_size": 0}, "1 to 2 images"),
        ({"max_size": 3}, "1 to 2 images"),
        ({"max_size": 1, "random_seed": -1}, "seed"),
        ({"use_labels": True}, "no labels"),
    ]:
        with pytest.raises(DatasetError, match=message):
            ImageFolderDataset(path, **arguments)
    assert ImageFolderDataset(path, resolution=16).resolution == 16


def test_damaged_pixels_are_named_when_read(tmp_path):
    files = make_data.archive_files(make_data.pixels(2, 16))
    name = "00000/img00000001.png"
    files[name] = files[name][:200]
    dataset = ImageFolderDataset(folder(tmp_path, files))
    assert dataset[0][0].shape == (3, 16, 16)
    with pytest.raises(DatasetError, match=r"img00000001\.png.*cannot be decoded"):
        dataset[1]


def test_damaged_zip_member_is_named_when_read(tmp_path):
    path = archive(tmp_path, make_data.pixels(1, 64))
    with open(path, "r+b") as file:
        file.seek(9000)
        file.write(b"damaged")
    with pytest.raises(DatasetError, match=r"img00000000\.png.*cannot be decoded"):
        ImageFolderDataset(path)[0]


def test_names_in_messages_are_escaped(tmp_path):
    path = make_data.write_zip(tmp_path / "data.zip", {"a\x1b[2J.png": b"damaged"})
    with pytest.raises(DatasetError, match=r"a\\x1b\[2J\.png"):
        ImageFolderDataset(path)
