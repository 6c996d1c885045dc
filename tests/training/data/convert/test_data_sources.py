import gzip
import io
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest

from tests import make_data
from training.data.convert.data_sources import is_numbered_collection, open_source
from training.data.image_files import DatasetError


def read(source):
    """Decode all images of a source: (list of arrays, list of labels)."""
    images = list(source.images())
    return [np.asarray(image.load()) for image in images], [image.label for image in images]


def check(source, images, labels):
    got_images, got_labels = read(source)
    np.testing.assert_array_equal(np.stack(got_images), images)
    assert got_labels == labels
    assert [a.name for a in source.images()] == [a.name for a in source.images()]
    assert source.count() in (None, len(images))


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


def test_files_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    files = make_data.archive_files(make_data.pixels(1, 16), [0])
    monkeypatch.setattr("training.data.image_files.MAX_FILE_BYTES", 20)
    for path in folder_or_zip(tmp_path, files, False), folder_or_zip(tmp_path, files, True):
        with pytest.raises(DatasetError, match="dataset.json.*at most 20"):
            open_source(path)
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


def test_lmdb(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    images = make_data.pixels(3, 16)
    path = tmp_path / "cat_lmdb"
    with lmdb.open(str(path), map_size=1 << 20) as database:
        with database.begin(write=True) as transaction:
            for i, image in enumerate(images):
                data = make_data.encode(image, "webp", lossless=True)
                transaction.put(f"key{i}".encode(), data)
    check(open_source(str(path) + "/"), images, [None] * 3)
    (path / "data.mdb").write_bytes(b"damaged" * 1000)
    with pytest.raises(DatasetError, match="cat_lmdb"):
        list(open_source(str(path)).images())


def test_lmdb_package_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "cat_lmdb").mkdir()
    with pytest.raises(DatasetError, match="pip install lmdb"):
        open_source(str(tmp_path / "cat_lmdb"))


def folder_or_zip(tmp_path, files, zipped):
    if zipped:
        return make_data.write_zip(tmp_path / "in.zip", files)
    return make_data.write_folder(tmp_path / "in", files)


@pytest.mark.parametrize("zipped", [False, True])
def test_files_with_labels_of_dataset_json(tmp_path, zipped):
    images = make_data.pixels(4, 16)
    path = folder_or_zip(tmp_path, make_data.archive_files(images, [3, 1, 0, 3]), zipped)
    check(open_source(path), images, [3, 1, 0, 3])
    check(open_source(path, "none"), images, [None] * 4)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("prefix", ["", "data/train/"])
def test_class_folders(tmp_path, zipped, prefix):
    images = make_data.pixels(3, 16)
    files = {
        prefix + name: make_data.encode(image)
        for name, image in zip(("cat/1.png", "cat/deep/2.PNG", "dog/1.png"), images, strict=True)
    }
    files["__MACOSX/cat/._1.png"] = files[prefix + "dog/.hidden.png"] = b"no image"
    files[prefix + ".ipynb_checkpoints/1.png"] = b"no class"
    source = open_source(folder_or_zip(tmp_path, files, zipped))
    check(source, images, [0, 0, 1])
    assert source.class_names == ["cat", "dog"]
    assert "2 classes" in source.notes[0]


def test_linked_class_folders_are_followed_and_circles_are_not(tmp_path):
    images = make_data.pixels(2, 16)
    make_data.write_folder(tmp_path / "elsewhere", {"1.png": make_data.encode(images[0])})
    path = make_data.write_folder(tmp_path / "in", {"dog/1.png": make_data.encode(images[1])})
    (tmp_path / "in" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(path)
    check(open_source(path), images, [0, 1])


def test_images_beside_folders_have_no_labels(tmp_path):
    data = make_data.encode(make_data.pixels(1, 16)[0])
    path = make_data.write_folder(tmp_path, {"a.png": data, "cat/1.png": data, "dog/1.png": data})
    assert read(open_source(path))[1] == [None] * 3
    with pytest.raises(DatasetError, match="no class folders"):
        open_source(path, "folders")


def test_archive_layout_is_not_classes_unless_asked_for(tmp_path):
    data = make_data.encode(make_data.pixels(1, 16)[0])
    names = ["00000/img00000000.png", "00000/img00000999.png", "00001/img00001000.png"]
    path = make_data.write_folder(tmp_path, dict.fromkeys(names, data))
    source = open_source(path)
    assert read(source)[1] == [None] * 3
    assert "one collection" in source.notes[0]
    assert read(open_source(path, "folders"))[1] == [0, 0, 1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["00000/00000.png", "00000/00999.png", "01000/01000.png"], True),  # FFHQ
        (["00000/00000_00000.ppm", "00001/00000_00000.ppm"], False),  # GTSRB: classes
        (["00000/1.png", "00000/3.png", "00001/2.png"], False),  # interleaved: classes
        (["0/1.png", "1/2.png"], False),
        (["n01440764/1.png", "n01443537/2.png"], False),
    ],
)
def test_numbered_collections(names, expected):
    assert is_numbered_collection(names) is expected


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff",
        b"[]",
        b'{"labels": 3}',
        b'{"labels": [["a.png"]]}',
        b'{"labels": [["a.png", -1]]}',
        b'{"labels": [["a.png", true]]}',
        b'{"labels": [["a.png", 1.5]]}',
        b'{"labels": [["a.png", []]]}',
        b'{"labels": [["a.png", [NaN]]]}',
        b'{"labels": [["a.png", 1], ["b.png", [1.0]]]}',
        b'{"labels": [["a.png", [1]], ["b.png", [1, 2]]]}',
        b'{"labels": [["a.png", 99999999999]]}',
        b'{"labels": [["a.png", [1' + b"0" * 400 + b"]]]}",
        b'{"labels": [["a.png", [1e39]]]}',
        b'{"labels": [["b.png", 1]]}',
    ],
)
def test_wrong_dataset_json_is_refused(tmp_path, content):
    files = {"a.png": make_data.encode(make_data.pixels(1, 16)[0]), "dataset.json": content}
    path = make_data.write_folder(tmp_path, files)
    with pytest.raises(DatasetError, match=r"dataset\.json") as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_damage_inside_a_zip_is_no_traceback(tmp_path):
    files = make_data.archive_files(make_data.pixels(1, 16), [0])
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        info = archive.getinfo("dataset.json")
    with open(tmp_path / "in.zip", "r+b") as file:
        file.seek(info.header_offset + 30 + len(info.filename))
        file.write(b"\xff" * info.compress_size)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        open_source(str(tmp_path / "in.zip"))


def test_label_names_with_backslashes(tmp_path):
    image = make_data.pixels(1, 16)
    labels = b'{"labels": [["a\\\\b.png", 3]]}'
    files = {"a/b.png": make_data.encode(image[0]), "dataset.json": labels}
    check(open_source(make_data.write_folder(tmp_path, files)), image, [3])


@pytest.mark.parametrize("name", ["../../escape.png", "/etc/escape.png"])
def test_members_with_hostile_names_are_refused(tmp_path, name):
    path = tmp_path / "inner" / "in.zip"
    path.parent.mkdir()
    make_data.write_zip(path, {name: make_data.encode(make_data.pixels(1, 16)[0])})
    with pytest.raises(DatasetError, match=f"its member '{name}' leads out of it"):
        list(open_source(str(path), "none").images())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in.zip", "inner"]


def test_no_images(tmp_path):
    with pytest.raises(DatasetError, match="holds no images"):
        open_source(str(tmp_path))
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(DatasetError, match="neither a folder nor a complete zip"):
        open_source(str(tmp_path / "text.zip"))
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(DatasetError, match="holds no images"):
        open_source(str(tmp_path / "empty.zip"))
    with pytest.raises(DatasetError, match="does not exist"):
        open_source(str(tmp_path / "absent"))
