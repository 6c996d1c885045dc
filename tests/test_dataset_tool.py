import json
import os
import pickle
import stat
import zipfile

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

import dataset_tool
from tests import make_data
from training.dataset import ImageFolderDataset


def run(*args, code=0):
    """Run the tool and return what it says; a traceback fails the test."""
    result = CliRunner().invoke(dataset_tool.main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def convert(source, dest, *args):
    run(f"--source={source}", f"--dest={dest}", *args)
    return ImageFolderDataset(dest, use_labels=read_json(dest)["labels"] is not None)


def read_json(dest):
    if os.path.isdir(dest):
        return json.loads((dest / "dataset.json").read_bytes())
    with zipfile.ZipFile(dest) as archive:
        return json.loads(archive.read("dataset.json"))


def as_arrays(dataset):
    """All images as [N, H, W, 3] or [N, H, W]."""
    return np.squeeze(np.stack([dataset[i][0].transpose(1, 2, 0) for i in range(len(dataset))]))


def image(size, mode="RGB"):
    return make_data.encode(PIL.Image.new(mode, size))


def test_round_trip_of_cifar10_is_pixel_equal(tmp_path):
    images, labels = make_data.pixels(12, 32), [9, *range(10), 4]
    source = make_data.write_cifar10(tmp_path / "cifar-10-python.tar.gz", images, labels)
    dataset = convert(source, tmp_path / "cifar10.zip")
    np.testing.assert_array_equal(as_arrays(dataset), images)
    np.testing.assert_array_equal(dataset.raw_labels, labels)
    meta = read_json(tmp_path / "cifar10.zip")["meta"]
    assert meta["source"] == "cifar-10" and meta["resize_filter"] == "lanczos"
    assert meta["tool_version"] and meta["original_size"] == {"width": [32, 32], "height": [32, 32]}


@pytest.mark.parametrize("dest", ["data.zip", "data"])
def test_every_other_source_makes_a_round_trip(tmp_path, dest):
    images = make_data.pixels(4, 32)
    files = {f"{'ab'[i % 2]}/{i}.png": make_data.encode(images[i]) for i in (0, 1, 2, 3)}
    folders = make_data.write_folder(tmp_path / "folders", files)
    cases = [
        (folders, images[[0, 2, 1, 3]], [0, 0, 1, 1]),
        (make_data.write_zip(tmp_path / "in.zip", files), images[[0, 2, 1, 3]], [0, 0, 1, 1]),
        (
            make_data.write_cifar100(tmp_path / "c100.tar.gz", images, [1, 2, 3, 4], [0] * 4),
            images,
            [1, 2, 3, 4],
        ),
        (
            make_data.write_folder(
                tmp_path / "imagenet",
                {"train_data_batch_1": make_data.imagenet_batch(images, [1, 5, 6, 7])},
            ),
            images,
            [0, 4, 5, 6],
        ),
    ]
    for i, (source, expected, labels) in enumerate(cases):
        dataset = convert(source, tmp_path / str(i) / dest)
        np.testing.assert_array_equal(as_arrays(dataset), expected)
        np.testing.assert_array_equal(dataset.raw_labels, labels)
    assert read_json(tmp_path / "0" / dest)["meta"]["class_names"] == ["a", "b"]


def test_mnist_and_max_images(tmp_path):
    images = make_data.pixels(5, 28, channels=1)
    source = make_data.write_mnist(tmp_path, images, [5, 0, 4, 1, 9])
    dataset = convert(source, tmp_path / "mnist.zip", "--max-images=3")
    np.testing.assert_array_equal(as_arrays(dataset)[:, 2:30, 2:30], images[:3])
    np.testing.assert_array_equal(dataset.raw_labels, [5, 0, 4])


def test_lmdb(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    images = make_data.pixels(3, 16)
    with lmdb.open(str(tmp_path / "cat_lmdb"), map_size=1 << 20) as database:
        with database.begin(write=True) as transaction:
            for i, pixels in enumerate(images):
                transaction.put(b"%d" % i, make_data.encode(pixels, "webp", lossless=True))
    dataset = convert(tmp_path / "cat_lmdb", tmp_path / "cat.zip")
    np.testing.assert_array_equal(as_arrays(dataset), images)
    assert read_json(tmp_path / "cat.zip")["labels"] is None


def test_digits(tmp_path):
    dataset = convert("digits", tmp_path / "digits.zip")
    assert len(dataset) == 1797 and dataset.image_shape == [1, 16, 16]
    assert dataset.label_dim == 10
    assert np.bincount(dataset.raw_labels).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]
    large = convert("digits", tmp_path / "d32.zip", "--width=32", "--max-images=2")
    assert large.resolution == 32
    box = convert("digits", tmp_path / "box", "--resize-filter=box", "--max-images=1")
    small = convert("digits", tmp_path / "d8", "--width=8", "--height=8", "--max-images=1")
    np.testing.assert_array_equal(as_arrays(box), np.kron(as_arrays(small), np.ones((2, 2))))


def test_archive_layout_and_determinism(tmp_path):
    images = make_data.pixels(1002, 8, channels=1)
    source = make_data.write_zip(tmp_path / "in.zip", make_data.archive_files(images))
    run(f"--source={source}", f"--dest={tmp_path / 'a.zip'}")
    run(f"--source={source}", f"--dest={tmp_path / 'b.zip'}")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        infos = archive.infolist()
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert {info.external_attr >> 16 for info in infos} == {0o644}
    names = [info.filename for info in infos]
    assert names[999:] == [
        "00000/img00000999.png",
        "00001/img00001000.png",
        "00001/img00001001.png",
        "dataset.json",
    ]


def test_our_own_archive_is_a_source(tmp_path):
    labels = [[0.5, 1.5], [2.0, -1.0]]
    files = make_data.archive_files(make_data.pixels(2, 16), labels)
    dataset = convert(make_data.write_folder(tmp_path / "in", files), tmp_path / "out")
    np.testing.assert_array_equal(dataset.raw_labels, np.float32(labels))
    assert read_json(tmp_path / "out")["labels"][1] == ["00000/img00000001.png", [2.0, -1.0]]


def gradient(width, height):
    """An RGB image whose red tells x and whose green tells y."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, np.full_like(x, 200)], axis=-1)


def test_center_crop(tmp_path):
    source = make_data.write_folder(
        tmp_path / "in",
        {"a.png": make_data.encode(gradient(48, 16)), "b.png": make_data.encode(gradient(16, 20))},
    )
    size = ("--transform=center-crop", "--width=16", "--height=16")
    dataset = convert(source, tmp_path / "out", *size)
    expected = [gradient(48, 16)[:, 16:32], gradient(16, 20)[2:18]]
    np.testing.assert_array_equal(as_arrays(dataset), expected)
    meta = read_json(tmp_path / "out")["meta"]
    assert meta["original_size"] == {"width": [16, 48], "height": [16, 20]}
    assert meta["transform"] == "center-crop"


def test_center_crop_wide(tmp_path):
    files = {
        "a.png": make_data.encode(gradient(32, 28)),
        "b.png": image((64, 60)),
        "narrow.png": image((31, 60)),
        "flat.png": image((64, 40)),
    }
    source = make_data.write_folder(tmp_path / "in", files)
    wide = ("--transform=center-crop-wide", "--width=32", "--height=24")
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}", *wide)
    assert "2 images too small" in output
    images = as_arrays(ImageFolderDataset(tmp_path / "out"))
    assert images.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(images[0, 4:28], gradient(32, 28)[2:26])
    assert not images[0, :4].any() and not images[0, 28:].any()
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "b.png").unlink()
    output = run(f"--source={source}", f"--dest={tmp_path / 'none'}", *wide, code=1)
    assert "All images are too small" in output


@pytest.mark.parametrize("name", ["box", "lanczos"])
def test_resizing_is_pillows(tmp_path, name):
    pixels = make_data.pixels(1, 32)[0]
    source = make_data.write_folder(tmp_path / "in", {"a.png": make_data.encode(pixels)})
    size = ("--width=8", "--height=8", f"--resize-filter={name}")
    dataset = convert(source, tmp_path / "out", *size)
    filters = {"box": PIL.Image.Resampling.BOX, "lanczos": PIL.Image.Resampling.LANCZOS}
    expected = PIL.Image.fromarray(pixels).resize((8, 8), filters[name])
    np.testing.assert_array_equal(as_arrays(dataset), expected)
    assert read_json(tmp_path / "out")["meta"]["resize_filter"] == name


def test_pixel_formats(tmp_path):
    rgba = PIL.Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    palette = PIL.Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    deep = PIL.Image.fromarray(np.full((8, 8), 257 * 77 + 100, np.uint16))
    files = {
        "a.png": make_data.encode(rgba),
        "b.png": make_data.encode(palette, transparency=b"\x00\x80"),
        "c.png": make_data.encode(deep),
        "d.png": make_data.encode(PIL.Image.new("LA", (8, 8), (50, 3))),
        "e.png": make_data.encode(PIL.Image.new("1", (8, 8), 1)),
        "f.jpg": make_data.encode(PIL.Image.new("CMYK", (8, 8)), "jpeg"),
    }
    source = make_data.write_folder(tmp_path / "in", files)
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}")
    assert "transparency of 3 images was dropped" in output
    assert "3 grey images among RGB ones" in output
    images = as_arrays(ImageFolderDataset(tmp_path / "out"))
    expected = [[10, 20, 30], [10, 20, 30], [77] * 3, [50] * 3, [255] * 3, [255] * 3]
    np.testing.assert_array_equal(images[:, 4, 4], expected)


def test_exif_orientation_is_left_alone(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255
    data = make_data.encode(pixels, "png", exif=exif)
    source = make_data.write_folder(tmp_path / "in", {"a.png": data})
    np.testing.assert_array_equal(as_arrays(convert(source, tmp_path / "out")), pixels)


@pytest.fixture
def mixed(tmp_path):
    """Two usable images and one of each unusable sort."""
    good = make_data.encode(make_data.pixels(1, 16)[0])
    files = {
        "good1.png": good,
        "good2.png": good,
        "cut.png": good[:100],
        "float.tif": make_data.encode(PIL.Image.new("F", (16, 16)), "tiff"),
        "large.png": image((32, 32)),
        "oblong.png": image((20, 16)),
        "text.jpg": b"text",
        "tiny.png": image((4, 4)),
        "uneven.png": image((24, 24)),
    }
    return make_data.write_folder(tmp_path / "mixed", files)


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_all_unusable_files_are_reported_at_once(tmp_path, mixed, dest):
    output = run(f"--source={mixed}", f"--dest={tmp_path / dest}", code=1)
    assert "7 of 9 images cannot be used; nothing was written" in output
    for reason in (
        "cut.png: cannot be read",
        "float.tif: has 32-bit pixels",
        "large.png: is 32x32, where most are 16x16",
        "oblong.png: is 20x16, not square",
        "text.jpg: is damaged or no image",
        "tiny.png: is 4x4, but a side must be a power of two from 8",
        "uneven.png: is 24x24, but a side must be a power of two",
    ):
        assert f"  {reason}" in output
    assert "good" not in output
    assert os.listdir(tmp_path) == ["mixed"]


def test_unusable_files_can_be_left_out(tmp_path, mixed):
    output = run(f"--source={mixed}", f"--dest={tmp_path / 'out.zip'}", "--skip-unusable")
    assert "7 unusable images are left out" in output
    dataset = ImageFolderDataset(tmp_path / "out.zip")
    assert len(dataset) == 2 and dataset.resolution == 16


def test_long_reports_are_shortened(tmp_path):
    files = {f"{i:02d}.png": b"damaged" for i in range(33)}
    source = make_data.write_folder(tmp_path / "in", files)
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}", "--skip-unusable", code=1)
    assert "19.png" in output and "20.png" not in output and "and 13 more" in output


def test_partly_labelled_images_are_reported(tmp_path):
    files = make_data.archive_files(make_data.pixels(3, 16), [0, 1, 2])
    files["dataset.json"] = b'{"labels": [["00000/img00000001.png", 7]]}'
    source = make_data.write_folder(tmp_path / "in", files)
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}", code=1)
    assert "2 of 3 images" in output and "img00000002.png: has no label" in output
    dataset = convert(source, tmp_path / "out", "--labels=none")
    assert len(dataset) == 3 and not dataset.has_labels


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--width=100"], "100 is not a power of two"),
        (["--height=4"], "4 is not a power of two from 8"),
        (["--width=32", "--height=16"], "32x16 is not square"),
        (["--transform=center-crop", "--width=32"], "needs --width and --height"),
        (["--transform=center-crop-wide", "--width=16", "--height=32"], "--width >= --height"),
        (["--width=0"], "x>=1"),
        (["--max-images=0"], "x>=1"),
        (["--resize-filter=cubic"], "cubic"),
        (["--labels=coarse"], "'coarse' is not for files"),
        (["--source=absent"], "'absent' does not exist"),
    ],
)
def test_usage_errors(tmp_path, args, message):
    source = make_data.write_folder(tmp_path / "in", {"a.png": image((16, 16))})
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}", *args, code=2)
    assert message in " ".join(output.replace("│", " ").split())
    assert os.listdir(tmp_path) == ["in"]


def test_unusable_destinations(tmp_path):
    source = make_data.write_folder(tmp_path / "in", {"a.png": image((16, 16))})
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file").write_text("text")
    for dest, message in [
        ("in", "is the source itself"),
        ("file", "is there and not empty"),
        ("folder.zip", "is a folder"),
        ("file/out.zip", "cannot be written"),
    ]:
        assert message in run(f"--source={source}", f"--dest={tmp_path / dest}", code=1)
    assert (tmp_path / "file").read_text() == "text"
    (tmp_path / "empty").mkdir()
    assert len(convert(source, tmp_path / "empty")) == 1
    run(f"--source={source}", f"--dest={tmp_path / 'new' / 'deep' / 'out.zip'}")
    assert stat.S_IMODE((tmp_path / "new" / "deep" / "out.zip").stat().st_mode) & 0o400


def test_the_source_is_never_overwritten(tmp_path):
    source = make_data.write_zip(tmp_path / "in.zip", {"a.png": image((16, 16))})
    before = (tmp_path / "in.zip").read_bytes()
    (tmp_path / "link.zip").symlink_to(source)
    for dest in ("in.zip", "link.zip"):
        output = run(f"--source={source}", f"--dest={tmp_path / dest}", code=1)
        assert "is the source itself" in output
    assert (tmp_path / "in.zip").read_bytes() == before


def test_names_of_files_cannot_write_to_the_terminal(tmp_path):
    name = "a\x1b[2J\nError: all is lost" + "x" * 200 + ".png"
    source = make_data.write_zip(tmp_path / "in.zip", {name: b"damaged"})
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}", code=1)
    assert r"  a\x1b[2J\nError: all is lostx" in output and "x" * 100 not in output


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_an_interrupted_run_leaves_the_old_archive(tmp_path, dest, monkeypatch):
    source = make_data.write_folder(
        tmp_path / "in", {"a.png": image((16, 16)), "b.png": image((16, 16))}
    )
    before = b""
    if dest == "out.zip":
        run(f"--source={source}", f"--dest={tmp_path / dest}")
        before = (tmp_path / dest).read_bytes()
    entries = sorted(os.listdir(tmp_path))
    encode, calls = dataset_tool.write_archive.__globals__["_encode"], []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr("training.data.convert.dataset_writer._encode", interrupt)
    run(f"--source={source}", f"--dest={tmp_path / dest}", code=1)
    assert len(calls) == 2 and sorted(os.listdir(tmp_path)) == entries
    assert dest == "out" or (tmp_path / dest).read_bytes() == before


def test_a_source_that_changes_after_the_scan(tmp_path, monkeypatch):
    source = make_data.write_folder(tmp_path / "in", {"a.png": image((16, 16))})
    check = dataset_tool.scan

    def scan_and_damage(*args):
        plan = check(*args)
        (tmp_path / "in" / "a.png").write_bytes(image((32, 32)))
        return plan

    monkeypatch.setattr(dataset_tool, "scan", scan_and_damage)
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}", code=1)
    assert "'a.png' has changed since the scan" in output
    assert os.listdir(tmp_path) == ["in"]


def test_a_source_that_shrinks_after_the_scan(tmp_path, monkeypatch):
    source = make_data.write_mnist(tmp_path, make_data.pixels(3, 28, channels=1), [0, 1, 2])
    check = dataset_tool.scan

    def scan_and_shrink(*args):
        plan = check(*args)
        plan.keep.append(True)
        return plan

    monkeypatch.setattr(dataset_tool, "scan", scan_and_shrink)
    output = run(f"--source={source}", f"--dest={tmp_path / 'out'}", code=1)
    assert "The source has changed since the scan" in output and not (tmp_path / "out").exists()


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_hostile_tarball_is_one_line(tmp_path):
    data = pickle.dumps({"data": Hostile(), "labels": [1]})
    source = make_data.write_tar(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": data})
    output = run(f"--source={source}", f"--dest={tmp_path / 'out.zip'}", code=1)
    assert output.startswith("Error: 'data_batch_1' is refused") and "builtins.exec" in output
    assert output.count("\n") == 1
