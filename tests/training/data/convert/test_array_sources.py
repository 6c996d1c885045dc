import gzip
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from tests import make_data
from tests.read_sources import check, read
from training.data.convert.data_sources import open_source
from training.data.image_files import DatasetError


def test_cifar10(tmp_path):
    images, labels = make_data.pixels(13, 32), [int(i * 7 % 10) for i in range(13)]
    path = make_data.write_cifar10(tmp_path / "cifar-10-python.tar.gz", images, labels)
    source = open_source(path)
    assert source.kind == "cifar-10"
    check(source, images, labels)
    assert read(open_source(path, "none"))[1] == [None] * 13


def test_cifar_batch_written_by_python2(tmp_path):
    images = make_data.pixels(3, 32)
    batch = make_data.python2_batch(images, [3, 1, 2])
    path = make_data.write_tar(tmp_path / "c.tar.gz", {"x/data_batch_1": batch})
    check(open_source(path), images, [3, 1, 2])


@pytest.mark.parametrize("protocol", range(5))
def test_cifar_batch_of_every_pickle_protocol(tmp_path, protocol):
    images = make_data.pixels(2, 32)
    content = {b"data": make_data.planar_rows(images), b"labels": [3, 1]}
    batch = pickle.dumps(content, protocol=protocol)
    path = make_data.write_tar(tmp_path / "c.tar.gz", {"x/data_batch_1": batch})
    check(open_source(path), images, [3, 1])


def test_cifar100_fine_and_coarse(tmp_path):
    images = make_data.pixels(4, 32)
    path = tmp_path / "cifar-100-python.tar.gz"
    make_data.write_cifar100(path, images, [99, 0, 5, 7], [19, 0, 1, 2])
    check(open_source(str(path)), images, [99, 0, 5, 7])
    check(open_source(str(path), "coarse"), images, [19, 0, 1, 2])


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("nested", ["alone", "in data", "in labels"])
def test_hostile_pickle_is_refused_by_name_and_not_executed(tmp_path, nested):
    marker = tmp_path / "executed"
    hostile = Hostile(marker)
    good = {"data": make_data.planar_rows(make_data.pixels(1, 32)), "labels": [1]}
    content = {
        "alone": hostile,
        "in data": {**good, "data": hostile},
        "in labels": {**good, "labels": [hostile]},
    }[nested]
    batch = pickle.dumps(content)
    tar = make_data.write_tar(tmp_path / "c.tar.gz", {"x/data_batch_1": batch})
    with pytest.raises(DatasetError, match=r"data_batch_1.*mkdir"):
        open_source(tar)
    folder = make_data.write_folder(tmp_path / "imagenet", {"train_data_batch_1": batch})
    with pytest.raises(DatasetError, match=r"train_data_batch_1.*mkdir"):
        list(open_source(folder).images())
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        np.array([[object()]], dtype=object),
        np.zeros(1, dtype=[("a", "u1")]),
        np.zeros((1, 3073), np.uint8),
        np.zeros((1, 3072), np.float32),
        "text",
        None,
    ],
)
def test_batch_without_images_is_refused(tmp_path, data):
    batch = pickle.dumps({"data": data, "labels": [1]}, protocol=2)
    path = make_data.write_tar(tmp_path / "c.tar.gz", {"x/data_batch_1": batch})
    with pytest.raises(DatasetError, match="data_batch_1"):
        open_source(path)


def test_absent_cifar_batches_are_noted(tmp_path):
    batch = pickle.dumps({"data": make_data.planar_rows(make_data.pixels(1, 32)), "labels": [1]})
    names = ("data_batch_0", "data_batch_1", "data_batch_3", "data_batch_6")
    source = open_source(make_data.write_tar(tmp_path / "c.tar.gz", dict.fromkeys(names, batch)))
    assert source.count() == 2
    assert "2, 4, 5 are not there" in source.notes[0]


@pytest.mark.parametrize(
    "labels", [[1], [1, -2], [1, 10**6], [1, 10**400], [1, 2.5], [[1], [2, 3]], None, [[1], [2]]]
)
def test_batch_with_wrong_labels_is_refused(tmp_path, labels):
    rows = make_data.planar_rows(make_data.pixels(2, 32))
    batch = pickle.dumps({"data": rows, "labels": labels}, protocol=2)
    path = make_data.write_tar(tmp_path / "c.tar.gz", {"x/data_batch_1": batch})
    with pytest.raises(DatasetError, match="data_batch_1.*labels"):
        list(open_source(path).images())


def test_damaged_tarballs_are_refused(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    make_data.write_cifar10(path, make_data.pixels(5, 32), [0] * 5)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DatasetError):
        open_source(str(path))
    path.write_bytes(b"no tarball")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_source(str(path))
    make_data.write_tar(path, {"readme": b"nothing here"})
    with pytest.raises(DatasetError, match="data_batch_1..5"):
        open_source(str(path))
    make_data.write_tar(path, {"data_batch_1": pickle.dumps({"data": 1})[:-3]})
    with pytest.raises(DatasetError, match="no readable pickle"):
        open_source(str(path))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("npz", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_imagenet_batches_in_numerical_order(tmp_path, size, npz, zipped):
    images, labels = make_data.pixels(6, size), [1, 1000, 2, 3, 4, 5]
    files = {
        f"Imagenet/train_data_batch_{number}{'.npz' if npz else ''}": make_data.imagenet_batch(
            images[i : i + 2], labels[i : i + 2], npz
        )
        for number, i in ((10, 4), (2, 2), (1, 0))
    }
    if zipped:
        path = make_data.write_zip(tmp_path / "train.zip", files)
    else:
        path = make_data.write_folder(tmp_path / "train", files)
    source = open_source(path)
    check(source, images, [label - 1 for label in labels])
    assert "3, 4, 5, 6, 7, 8, 9" in source.notes[0]


def test_npz_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.convert.array_sources._CHUNK", 4)
    images, labels = make_data.pixels(10, 32), list(range(1, 11))
    batch = make_data.imagenet_batch(images, labels, npz=True)
    path = make_data.write_folder(tmp_path / "in", {"train_data_batch_1.npz": batch})
    source = open_source(path)
    check(source, images, list(range(10)))
    names = [image.name for image in source.images()]
    assert names[9] == "train_data_batch_1.npz[9]"


@pytest.mark.parametrize("npz", [False, True])
def test_damaged_imagenet_batches_are_refused(tmp_path, npz):
    name = "train_data_batch_1" + (".npz" if npz else "")
    good = make_data.imagenet_batch(make_data.pixels(2, 32), [1, 2], npz)
    zero = make_data.imagenet_batch(make_data.pixels(2, 32), [0, 1], npz)
    fewer = make_data.imagenet_batch(make_data.pixels(2, 32), [1], npz)
    for batch in (good[:-50], b"", zero, fewer):
        path = make_data.write_folder(tmp_path / "in", {name: batch})
        with pytest.raises(DatasetError, match="train_data_batch_1"):
            list(open_source(path).images())


def npy(array, shape):
    """An .npy file of the array whose header promises another shape."""
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


@pytest.mark.parametrize(
    ("labels", "data"),
    [
        ((10**15,), (2, 3072)),
        ((2**62, 4), (2, 3072)),
        ((2,), (2, 10**19)),
        ((2,), (10**19, 3072)),
        ((2,), (2, 3 * 2048**2)),
        ((2,), (-2, 3072)),
        (("(",), (2, 3072)),
    ],
)
def test_impossible_shapes_in_npz_are_refused(tmp_path, labels, data):
    with zipfile.ZipFile(tmp_path / "train_data_batch_1.npz", "w") as file:
        file.writestr("labels.npy", npy(np.array([1, 2]), labels))
        file.writestr("data.npy", npy(make_data.planar_rows(make_data.pixels(2, 32)), data))
    with pytest.raises(DatasetError, match="train_data_batch_1"):
        list(open_source(str(tmp_path)).images())


def test_batches_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    batch = make_data.imagenet_batch(make_data.pixels(1, 32), [1])
    tar = make_data.write_tar(tmp_path / "c.tar.gz", {"data_batch_1": batch})
    monkeypatch.setattr("training.data.convert.array_sources._MAX_BATCH_BYTES", 20)
    with pytest.raises(DatasetError, match="data_batch_1.*at most 20"):
        open_source(tar)


def test_mnist_is_padded(tmp_path):
    images = make_data.pixels(5, 28, channels=1)
    path = make_data.write_mnist(tmp_path, images, [5, 0, 4, 1, 9])
    padded = np.zeros((5, 32, 32), np.uint8)
    padded[:, 2:30, 2:30] = images
    check(open_source(path), padded, [5, 0, 4, 1, 9])


def test_damaged_mnist_is_refused(tmp_path):
    for count in (4, 6):
        path = make_data.write_mnist(tmp_path, make_data.pixels(5, 28, channels=1), [0] * count)
        with pytest.raises(DatasetError, match=f"has {count} labels, but .* has 5 images"):
            open_source(path)
    for shape in ((5, 29, 28), (5, 2**31, 2**31)):
        path = make_data.write_mnist(tmp_path, make_data.pixels(5, 28, channels=1), [0] * 5)
        with gzip.open(path, "wb") as file:
            file.write(b"\0\0\x08\x03" + np.array(shape, ">u4").tobytes() + bytes(5 * 28 * 28))
        with pytest.raises(DatasetError, match="too short|cannot be read"):
            list(open_source(path).images())
    os.remove(path.replace("images-idx3", "labels-idx1"))
    with pytest.raises(DatasetError, match=r"labels.*missing"):
        open_source(path)
    make_data.write_mnist(tmp_path, make_data.pixels(5, 28, channels=1), [0] * 5)
    with open(path, "wb") as file:
        file.write(b"no gzip")
    with pytest.raises(DatasetError, match="cannot be read"):
        open_source(path)


def test_digits_are_scaled_to_the_full_range():
    source = open_source("digits")
    images, labels = read(source)
    assert source.count() == len(images) == 1797
    assert images[0].shape == (8, 8)
    assert np.max(images) == 255 and np.min(images) == 0
    assert set(np.unique(images)) == {round(v * 255 / 16) for v in range(17)}
    assert labels[:4] == [0, 1, 2, 3] and source.default_size == 16
