import sys
import zipfile

import pytest

from tests import make_data
from tests.read_sources import check, read
from training.data.convert.data_sources import is_numbered_collection, open_source
from training.data.image_files import DatasetError


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


def test_files_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    files = make_data.archive_files(make_data.pixels(1, 16), [0])
    monkeypatch.setattr("training.data.image_files.MAX_FILE_BYTES", 20)
    for path in folder_or_zip(tmp_path, files, False), folder_or_zip(tmp_path, files, True):
        with pytest.raises(DatasetError, match="dataset.json.*at most 20"):
            open_source(path)


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
