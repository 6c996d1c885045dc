"""Hostile and broken files: every reader refuses them by its own error, in one line, and runs none.

What hostile pickles may try stands in hostile_pickles.py; here all kinds of files come together.
"""

import contextlib
import io
import json
import os
import re
import signal
import struct
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import legacy
from tests import make_data, tiny
from tests.hostile_pickles import HOSTILE, PROTOCOL_2
from training.data.image_files import MAX_MEMBERS
from training.data.zip_directory import count_members
from training.dataset import DatasetError, ImageFolderDataset
from training.run import checkpoint_file as checkpoint
from training.run.checkpoint_file import CheckpointError, read_checkpoint
from training.run.resume import read_settings
from training.run.safetensors_io import SafetensorsError, export_networks, import_networks

MEMORY = 200 << 20  # bytes that reading any of them may take
SECONDS = 60  # for what takes milliseconds: a reader that is caught in a file
REFUSALS = (
    DatasetError,
    CheckpointError,
    SafetensorsError,
    legacy.UnsafePickleError,
    legacy.NetworkPickleError,
)
PNG = make_data.encode(make_data.pixels(1, 8, 1)[0])
FILES = make_data.archive_files(make_data.pixels(3, 8, 1))


class OutOfTime(BaseException):
    """No reader mistakes it for what is wrong with a file."""


@contextlib.contextmanager
def bounded(memory=MEMORY, seconds=SECONDS):
    """Context that ends what takes longer, and fails where the process has grown by more."""
    before = resident()

    def alarm(*_args):
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        assert resident(peak=True) - before < memory


def resident(peak=False):
    """Bytes in memory now, or the most since the last call without `peak`; 0 but on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if not peak:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) << 10


# Readers: from a path to what is in it


def read_dataset(path):
    data = ImageFolderDataset(str(path))
    return [data[index] for index in range(len(data))]


def read_labels(path):
    return ImageFolderDataset(str(path), use_labels=True).raw_labels


def read_snapshot(path):
    with open(path, "rb") as file:
        return legacy.load_network_pkl(file)


# Files: from a folder to the path of one


def member(name, data=PNG, mode=0, method=zipfile.ZIP_STORED):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, method
    return info, data


def zip_of(*members):
    def write(folder):
        path = folder / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for info, data in members:
                archive.writestr(info, data)
        return path

    return write


def changed_zip(change):
    def write(folder):
        path = folder / "data.zip"
        make_data.write_zip(path, FILES)
        path.write_bytes(change(bytearray(path.read_bytes())))
        return path

    return write


def declared_size(data, size):
    """Change the size that the directory declares for the first image."""
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", size)
    return bytes(data)


def entry(name=b"x", extra=b""):
    lengths = len(name), len(extra)
    head = struct.pack("<I6H3I5H2I", 0x02014B50, 20, 20, *[0] * 7, *lengths, *[0] * 5)
    return head + name + extra


def directory(*entries, declared=None, size=None, zip64=False):
    """A zip that is a directory alone, which declares what it likes."""
    data = b"".join(entries)
    count = len(entries) if declared is None else declared
    size = len(data) if size is None else size
    small = (0xFFFF, 0xFFFF, 2**32 - 1, 0) if zip64 else (count, count, size, 0)
    end = struct.pack("<I2x2x2H2IH", 0x06054B50, *small, 0)
    if zip64:
        record = struct.pack("<IQ2H2I4Q", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, 0)
        end = record + struct.pack("<IIQI", 0x07064B50, 0, len(data), 1) + end
    return plain(data + end, "data.zip")


def two_names_for_one_member(data):
    """What a bomb is made of: the second entry of the directory leads to the first member."""
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


def linked(target, name="a.png"):
    def write(folder):
        (folder / "data").mkdir()
        (folder / "data" / name).symlink_to(target)
        return folder / "data"

    return write


def pipe(folder, name="data/a.png"):
    (folder / "data").mkdir()
    os.mkfifo(folder / name)
    return folder / name.split("/")[0]


def twice(folder):
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("00000/img00000000.png", PNG)
    return path


def labels(content):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return zip_of(*[member(n, d) for n, d in {**FILES, "dataset.json": text}.items()])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=8, height=8, bits=8, colour=0, pixels=b"\0" * 72):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def image(data, name="a.png"):
    return zip_of(member(name, data))


def plain(data, name="file"):
    def write(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return write


def hostile(make):
    def write(folder):
        data = make(folder / "sentinel")
        prefix = b"" if data[:1] == PROTOCOL_2[:1] else PROTOCOL_2
        return plain(prefix + data)(folder)

    return write


def state(content):
    def write(folder):
        data = content
        if not isinstance(content, bytes):
            buffer = io.BytesIO()
            torch.save(content, buffer)
            data = buffer.getvalue()
        (folder / "x").write_bytes(data)
        name = f"checkpoint-000001-000000001-{checkpoint._digest(folder / 'x')}.pt"
        return (folder / "x").rename(folder / name)

    return write


def run_folder(text):
    def write(folder):
        (folder / "training_options.json").write_text(text)
        return folder

    return write


def exported(change=None, tensors=None):
    """Networks as safetensors, with a change of what the JSON file says, or other tensors."""

    def write(folder):
        G, D = tiny.networks()
        nets = {"G": G, "D": D, "G_ema": G, "augment_pipe": None, "training_set_kwargs": None}
        path = folder / "net.safetensors"
        export_networks(nets, path)
        description = json.loads(path.with_suffix(".json").read_text())
        if change is not None:
            description = change(description)
        path.with_suffix(".json").write_text(json.dumps(description))
        if tensors is not None:
            path.write_bytes(tensors(path.read_bytes()))
        return path

    return write


def nested(depth):
    return {"a": nested(depth - 1)} if depth else {}


def with_class(name):
    return lambda description: description["networks"]["G"].update({"class": name}) or description


def with_item(name, value):
    def change(description):
        if value is None:
            del description["networks"]["G"][name]
        else:
            description["networks"]["G"][name] = value
        return description

    return change


def foreign_tensor(data):
    return safetensors.torch.save({**safetensors.torch.load(data), "X.a": torch.zeros(1)})


def with_argument(name, value):
    def change(description):
        description["networks"]["G"]["kwargs"][name] = value
        return description

    return change


HUGE = b"\x80\x02}r\xff\xff\xff\x7f."  # a memo of two thousand million places
DEEP = b"\x80\x02" + b"(" * 100_000 + b"."
BOMB = bytes(40 << 20)
DATASETS = {
    "path leads out": (zip_of(member("../a.png")), "'../a.png' leads out of it"),
    "path leads out below": (zip_of(member("a/../../a.png")), "leads out of it"),
    "absolute path": (zip_of(member("/etc/a.png")), "leads out of it"),
    "drive": (zip_of(member("C:/a.png")), "leads out of it"),
    "drive and backslash": (zip_of(member("C:\\a.png")), "leads out of it"),
    "backslash out": (zip_of(member("..\\a.png")), "leads out of it"),
    "backslash out below": (zip_of(member("a/..\\..\\a.png")), "leads out of it"),
    "share": (zip_of(member("\\\\host\\a.png")), "leads out of it"),
    "backslash": (zip_of(member("a\\a.png")), "has a backslash"),
    "symbolic link": (zip_of(member("a.png", b"/etc/passwd", 0o120777)), "is a symbolic link"),
    "the same name twice": (twice, "is in it twice"),
    "many members of one name": (directory(*[entry()] * 2000), "is in it twice"),
    "a million declared": (
        directory(entry(), declared=10**6, zip64=True),
        "declares 1000000 members in .* 47 bytes",
    ),
    "more declared than may be": (
        directory(entry(), declared=2**40, zip64=True),
        "has 1099511627776 members or more",
    ),
    "directory larger than the file": (directory(entry(), size=10**6), "zip"),
    "directory of 2^60 bytes": (directory(entry(), size=2**60, zip64=True), "zip"),
    "directory of long names": (
        directory(*[entry(b"x" * 60000, bytes(4) + bytes(996))] * 3),
        "takes 183138 bytes for 3",
    ),
    "entry cut off": (directory(entry(), entry()[:20]), "zip"),
    "entry that leads beyond": (directory(entry(), entry(b"x" * 9)[:-5], declared=2), "zip"),
    "no entry where one is declared": (directory(bytes(60)), "zip"),
    "name in no encoding": (
        directory(entry(b"\xff.png").replace(bytes(2), b"\0\x08", 1)),
        "zip|a.png|png",
    ),
    "two names for one member": (changed_zip(two_names_for_one_member), "differ|Overlap|zip"),
    "link in a folder": (linked("/etc/passwd"), "a.png' in .* damaged or no image"),
    "link to a device": (linked("/dev/zero"), "no regular file"),
    "link to nothing": (linked("/nowhere/at/all"), "cannot be read"),
    "pipe in a folder": (pipe, "no regular file"),
    "pipe": (lambda folder: pipe(folder, "pipe"), "neither a folder nor a complete zip"),
    "bomb": (changed_zip(lambda data: declared_size(data, 2_000_000_000)), "to 2000000000 bytes"),
    "bomb in a deflated image": (
        zip_of(member("a.png", BOMB, method=zipfile.ZIP_DEFLATED)),
        "damaged or no image",
    ),
    "declares less than there is": (changed_zip(lambda d: declared_size(d, 20)), "img00000000"),
    "directory cut off": (changed_zip(lambda data: data[:-30]), "complete zip"),
    "end cut off": (changed_zip(lambda data: data[:-1]), "zip"),
    "start cut off": (changed_zip(lambda data: data[100:]), "img00000000|zip"),
    "no directory": (changed_zip(lambda data: data[: data.index(b"PK\x01\x02")]), "complete zip"),
    "directory overwritten": (
        changed_zip(lambda d: d.replace(b"PK\x01\x02", b"PK\x09\x09")),
        "zip",
    ),
    "empty zip": (zip_of(), "holds no images"),
    "empty file": (plain(b"", "d.zip"), "complete zip"),
    "only the signature": (plain(b"PK\x05\x06", "d.zip"), "zip"),
    "other archive": (plain(b"\x1f\x8b\x08" + bytes(100), "d.zip"), "complete zip"),
    "unknown compression": (
        changed_zip(
            lambda d: d.replace(
                b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63\0"
            )
        ),
        "img00000000|zip",
    ),
    "encrypted": (
        changed_zip(
            lambda d: d.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0")
        ),
        "encrypted|password",
    ),
    "no image": (image(b"hello"), "damaged or no image"),
    "empty image": (image(b""), "damaged or no image"),
    "header alone": (image(PNG[:26]), "cannot be decoded"),
    "image cut off": (image(PNG[:60]), "cannot be decoded"),
    "giant": (image(png(65536 * 4, 65536 * 4)), "cannot be decoded"),
    "negative size": (image(png(2**31 + 8, 8)), "must be square"),
    "no size": (image(png(0, 0)), "power of two"),
    "16 bits": (image(png(bits=16)), "16 bits"),
    "palette": (image(png(colour=3)), "mode P"),
    "alpha": (image(png(colour=6)), "alpha"),
    "unknown colour": (image(png(colour=9)), "mode \\?"),
    "no png behind its name": (image(b"GIF89a" + bytes(20)), "a.png"),
    "control characters in a name": (image(b"", "a\n\x1b[31m.png"), "a\\\\n"),
}
LABELS = {
    "no JSON": (labels(b"{"), "dataset.json"),
    "no text": (labels(b"\xff\xfe\x00"), "dataset.json"),
    "deep JSON": (labels(b"[" * 200_000), "dataset.json"),
    "a list": (labels([1, 2]), "must be an object"),
    "labels of another kind": (labels({"labels": 7}), "labels"),
    "pairs that are none": (labels({"labels": [[1]]}), "labels"),
    "negative": (labels({"labels": [[n, -1] for n in FILES]}), "label"),
    "huge": (labels({"labels": [[n, 10**12] for n in FILES]}), "label"),
    "not a number": (labels({"labels": [[n, [float("nan")]] for n in FILES]}), "label"),
    "mixed": (labels({"labels": [[n, i or [1.0]] for i, n in enumerate(FILES)]}), "label"),
    "missing": (labels({"labels": [["other.png", 1]]}), "label"),
}
SNAPSHOTS = {
    "empty": (plain(b""), "not a readable"),
    "text": (plain(b"hello"), "starts with"),
    "zip": (plain(b"PK\x03\x04"), "starts with"),
    "cut off": (plain(b"\x80\x04\x95"), "not a readable"),
    "huge memo": (plain(HUGE), "memo index"),
    "deep": (plain(DEEP), "not a"),
    "a number": (plain(b"\x80\x02K\x07."), "holds a int"),
    "empty dict": (plain(b"\x80\x02}."), "'G' is nothing"),
}
STATES = {
    "hostile": (state({"format": 1, "x": legacy.load_network_pkl}), "cannot be read"),
    "another format": (state({"format": 2}), "of this version"),
    "a list": (state([1]), "of this version"),
    "no archive": (state(b"hello"), "cannot be read"),
    "pickle": (state(b"\x80\x02}."), "cannot be read"),
}
SETTINGS = {
    "no JSON": (run_folder("{"), "not of this version"),
    "deep": (run_folder("[" * 200_000), "not of this version"),
    "a list": (run_folder("[]"), "not of this version"),
    "unknown settings": (run_folder('{"stop_on": [], "x": 1}'), "not of this version"),
}
EXCHANGE = {
    "unknown class": (exported(with_class("os.system")), "no network class"),
    "other class": (exported(with_class("Discriminator")), "net.safetensors"),
    "more tensors than there are": (exported(with_argument("img_resolution", 16)), "lacks"),
    "giant": (exported(with_argument("z_dim", 2**40)), "above"),
    "argument of another kind": (exported(with_argument("z_dim", "x")), "net.safetensors"),
    "no networks": (exported(lambda d: d | {"networks": {}}), "missing"),
    "networks in a list": (exported(lambda d: d | {"networks": []}), "'networks' .* type list"),
    "a number of networks": (exported(lambda d: d | {"networks": 3}), "'networks' .* type int"),
    "null networks": (exported(lambda d: d | {"networks": None}), "'networks' .* type NoneType"),
    "lacks networks": (exported(lambda d: {"format": d["format"]}), "lacks 'networks'"),
    "network that is none": (
        exported(lambda d: d | {"networks": d["networks"] | {"G": [1]}}),
        "'G' in .* is not a dict",
    ),
    "class of another kind": (exported(with_class(None)), "'class' in 'G .* type NoneType"),
    "lacks the class": (exported(with_item("class", None)), "lacks 'class'"),
    "lacks the arguments": (exported(with_item("args", None)), "lacks 'args'"),
    "arguments of another kind": (exported(with_item("args", {"a": 1})), "'args' in 'G .* dict"),
    "more arguments": (exported(with_item("args", [[{}]] * 9)), "net.safetensors"),
    "named arguments in a list": (exported(with_item("kwargs", [1])), "'kwargs' in 'G .* list"),
    "unknown argument": (exported(with_argument("nonsense", 1)), "nonsense"),
    "null argument": (exported(with_argument("w_dim", None)), "net.safetensors"),
    "data set of another kind": (
        exported(lambda d: d | {"training_set_kwargs": [["path", "x"]]}),
        "kwargs' .* list",
    ),
    "lacks the data set": (
        exported(lambda d: {k: v for k, v in d.items() if k != "training_set_kwargs"}),
        "lacks",
    ),
    "control characters in a network": (
        exported(lambda d: d | {"networks": {"\x1b[2J": {}}}),
        "is none of",
    ),
    "deep": (exported(lambda d: {**d, "networks": nested(200)}), "'a' is none of"),
    "more text than it may have": (exported(lambda d: "x" * (1 << 24)), "larger than"),
    "tensor of no network": (exported(tensors=foreign_tensor), "'X.a' belongs to no network"),
    "another network": (exported(lambda d: {**d, "networks": {"X": {}}}), "'X' is none of"),
    "other description": (exported(lambda d: {}), "no networks of this format"),
    "a list": (exported(lambda d: []), "no networks of this format"),
    "tensors cut off": (exported(tensors=lambda data: data[:-5]), "net.safetensors"),
    "tensors of nothing": (exported(tensors=lambda data: b""), "net.safetensors"),
    "giant header": (exported(tensors=lambda d: struct.pack("<Q", 2**60) + d[8:]), "net.saf"),
}
TABLE = [
    *((read_dataset, *case) for case in DATASETS.items()),
    *((read_labels, *case) for case in LABELS.items()),
    *((read_snapshot, *case) for case in SNAPSHOTS.items()),
    *((read_checkpoint, *case) for case in STATES.items()),
    *((read_settings, *case) for case in SETTINGS.items()),
    *((import_networks, *case) for case in EXCHANGE.items()),
    *((read_snapshot, name, (hostile(make), told)) for name, (make, told, _) in HOSTILE.items()),
]


def test_the_table_is_long():
    assert len(TABLE) >= 60 + len(HOSTILE)


@pytest.fixture(scope="module", autouse=True)
def imported_before(tmp_path_factory):
    """What PyTorch imports at the first use is not what a file costs."""
    import_networks(exported()(tmp_path_factory.mktemp("first")))


@pytest.mark.parametrize(
    ("reader", "name", "case"), TABLE, ids=[f"{read.__name__}-{name}" for read, name, _ in TABLE]
)
def test_refused_in_one_line_in_little_memory_and_in_time(tmp_path, reader, name, case):
    write, message = case
    path = write(tmp_path)
    with bounded(), pytest.raises(REFUSALS, match=message) as caught:
        reader(path)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("declared", [4, 3])
def test_more_members_than_any_data_set_has(tmp_path, monkeypatch, declared):
    monkeypatch.setattr("training.data.image_files.MAX_MEMBERS", 3)
    monkeypatch.setattr("zipfile.ZipFile", lambda path: pytest.fail("it has been opened"))
    path = directory(*[entry(b"%d" % i) for i in range(4)], declared=declared)(tmp_path)
    with pytest.raises(DatasetError, match="has 4 members or more; at most 3 .* give the folder"):
        read_dataset(path)


@pytest.mark.slow
def test_a_million_members_are_counted_without_being_held(tmp_path):
    path = tmp_path / "data.zip"
    names = (b"%05d/img%08d.png" % (i // 1000, i) for i in range(10**6))
    directory(*map(entry, names), zip64=True)(tmp_path)
    with open(path, "rb") as file:
        with bounded(memory=1 << 20):
            assert count_members(file, MAX_MEMBERS) == 10**6 < MAX_MEMBERS
            assert count_members(file, 1000) in (1001, 10**6)


def test_files_that_links_lead_to_are_read(tmp_path):
    make_data.write_folder(tmp_path / "real", FILES)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0").symlink_to(tmp_path / "real" / "00000")
    (tmp_path / "data" / "nowhere.txt").symlink_to(tmp_path / "none")
    (tmp_path / "data" / "0" / "circle").symlink_to(tmp_path / "data")
    assert len(read_dataset(tmp_path / "data")) == 3


@pytest.mark.parametrize(
    ("reader", "seconds", "told"),
    [(lambda: b"x" * (300 << 20), SECONDS, AssertionError), (lambda: time.sleep(9), 1, OutOfTime)],
    ids=["memory", "time"],
)
def test_the_bounds_are_watched(reader, seconds, told):
    with pytest.raises(told), bounded(seconds=seconds):
        reader()


def test_what_an_export_holds_is_what_it_was(tmp_path):
    networks = import_networks(exported()(tmp_path))
    G, D = tiny.networks()
    for name, net in {"G": G, "D": D, "G_ema": G}.items():
        own, other = net.state_dict(), networks[name].state_dict()
        assert own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) for key in own)
    assert networks["augment_pipe"] is None


# Fuzzing: what is nearly right


def edits(size):
    """A few changes of a file of that many bytes."""
    change = st.tuples(st.integers(0, size - 1), st.binary(min_size=1, max_size=4))
    return st.tuples(st.lists(change, max_size=4), st.integers(0, size))


def edited(data, edit):
    changes, length = edit
    data = bytearray(data)
    for at, new in changes:
        data[at : at + len(new)] = new
    return bytes(data[:length] if length % 4 == 0 else data)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def pickled():
    from training.run.snapshot_file import save_snapshot

    G, D = tiny.networks()
    return lambda path: save_snapshot(
        path, G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={}
    )


ZIP = zipped()
FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@FUZZ
@given(edit=edits(len(ZIP)))
def test_fuzzed_archives(tmp_path_factory, edit):
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    path.write_bytes(edited(ZIP, edit))
    for reader in (read_dataset, read_labels):
        try:
            with bounded():
                reader(path)
        except DatasetError as error:
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    path = tmp_path_factory.mktemp("snapshot") / "net.pkl"
    pickled()(path)
    return path.read_bytes()


@FUZZ
@given(data=st.data())
def test_fuzzed_snapshots(snapshot, data):
    edit = data.draw(edits(len(snapshot)))
    try:
        with bounded():
            legacy.load_network_pkl(io.BytesIO(edited(snapshot, edit)))
    except (legacy.UnsafePickleError, legacy.NetworkPickleError) as error:
        assert "\n" not in str(error)
