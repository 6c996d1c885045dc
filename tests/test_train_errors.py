"""Bad input, and runs that go wrong: one line each, nothing lost."""

import errno
import re
from pathlib import Path

import click
import numpy as np
import pytest

import train
from dnnlib.errors import last_line
from tests import make_data, tiny
from tests.hostile_pickles import HOSTILE
from tests.speed import slow
from tests.train_cli import FEW_CHANNELS, SMALL, refused, snapshot, trained, without_curves
from training import training_loop
from training.launch import session
from training.run.checkpoint_file import find_checkpoints
from training.run.snapshot_file import save_snapshot
from training.settings.options import NumberOrWord

pytestmark = without_curves

TINY = (*FEW_CHANNELS, "--gamma=0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=40)


NUMERIC = [
    parameter.opts[0]
    for parameter in train.main.params
    if isinstance(parameter.type, NumberOrWord) or parameter.type in (click.INT, click.FLOAT)
]


def test_the_list_of_numeric_options():
    assert len(NUMERIC) >= 17 and {"--coop-noise", "--kimg", "--gamma"} <= set(NUMERIC)


@pytest.mark.parametrize("option", NUMERIC)
@pytest.mark.parametrize("value", ["-1", "many", "nan"])
def test_numbers_that_are_none_or_negative(data, tmp_path, option, value):
    message = refused(
        f"--data={data}", f"--outdir={tmp_path / 'runs'}", f"{option}={value}", code=2
    )
    assert option in message and value in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cfg=digits", "--batch=10"], "choose another --batch"),
        (["--cfg=cifar", "--batch=48"], "minibatch-std group of 32: choose another --batch"),
        (["--cfg=huge"], "'--cfg'"),
        (["--coop-noise=loud"], "neither a number nor 'literal'"),
        (["--coop-clamp=tight"], "'tight' is not a valid float"),
        (["--coop-noise-schedule=cosine"], "'--coop-noise-schedule'"),
        (["--device=tpu"], "--device must be cpu, cuda or cuda:N, not tpu"),
        (["--device=cuda:99"], "--device=cuda:99 is not there; use --device=cpu"),
        (["--kimg=0", "--coop-steps=0"], "--kimg must be at least 1, not 0; --coop-steps must"),
        (["--colour=red"], "--colour"),
        (["extra"], "extra"),
    ],
)
def test_usage(data, options, message):
    assert message in refused(f"--data={data}", *options, code=2)


def test_data_is_required():
    assert "--data" in refused(code=2)


PNG = make_data.encode(make_data.pixels(1, 8, 1)[0])
IMAGES = make_data.pixels(3, 8, 1)
FILES = make_data.archive_files(IMAGES)
LAST = "00000/img00000002.png"
BAD_DATA = {
    # What is in the folder; None: there is no folder
    "missing": (None, [], "does not exist; give a folder or zip"),
    "empty": ({}, [], "holds no images"),
    "no images": ({"notes.txt": b"hello"}, [], "holds no images"),
    "header corrupt": (FILES | {LAST: PNG[:20]}, [], f"'{LAST}'"),
    "no image at all": (FILES | {LAST: b"hello"}, [], f"'{LAST}'"),
    "body corrupt": (FILES | {LAST: PNG[:45]}, [], f"'{LAST}' in .* cannot be decoded"),
    "not square": ({"a.png": make_data.encode(IMAGES[0][:, :4])}, [], "4x8"),
    "no power of two": ({"a.png": make_data.encode(make_data.pixels(1, 12)[0])}, [], "12x12"),
    "mixed sizes": (
        FILES | {LAST: make_data.encode(make_data.pixels(1, 16, 1)[0])},
        [],
        "mixes .*16x16",
    ),
    "mixed colours": (
        FILES | {LAST: make_data.encode(make_data.pixels(1, 8)[0])},
        [],
        "mixes .*RGB",
    ),
    "no labels": (FILES, ["--cond=1"], "no labels in dataset.json; train without --cond"),
    "subset too large": (FILES, ["--subset=4"], "1 to 3 images, not 4"),
}


@pytest.mark.parametrize("case", BAD_DATA)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_data_that_cannot_be_used(tmp_path, case, kind):
    files, options, message = BAD_DATA[case]
    path = tmp_path / ("data.zip" if kind == "zip" else "data")
    if files is not None:
        if kind == "folder":
            path.mkdir()
        (make_data.write_zip if kind == "zip" else make_data.write_folder)(path, files)
    outdir = tmp_path / "runs"
    line = refused(f"--data={path}", f"--outdir={outdir}", *SMALL, *options, code=1)
    assert re.search(message, line), line
    assert not outdir.exists() or not list(outdir.iterdir()), "no run folder is left"


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more"])
def test_archives_that_cannot_be_read(tmp_path, content):
    (tmp_path / "data.zip").write_bytes(content)
    line = refused(f"--data={tmp_path / 'data.zip'}", code=1)
    assert "data.zip" in line


@tiny.starts_workers
@pytest.mark.parametrize(("damaged", "workers"), [slow((2, 0)), (2, 2), (12, 0), slow((12, 2))])
def test_images_that_turn_out_damaged_while_training(tmp_path, workers, damaged):
    """A few are left out and named; more than 1 % end the run, with what was trained saved."""
    count = 32 * 32 + damaged  # more than reals.png shows
    unseen = np.random.RandomState(0).permutation(count)[-damaged:]
    names = [f"{unseen_index // 1000:05d}/img{unseen_index:08d}.png" for unseen_index in unseen]
    files = make_data.archive_files(make_data.pixels(count, 8, 1))
    files |= {name: files[name][:45] for name in names}
    path = make_data.write_zip(tmp_path / "data.zip", files)
    options = (*SMALL, *TINY, "--kimg=2", "--batch=256", f"--workers={workers}")
    options += (f"--data={path}", f"--outdir={tmp_path / 'runs'}")
    if damaged == 2:
        _, output = trained(*options)
        for name in names:
            assert output.count(f"'{name}' in '{path}' cannot be decoded (") == 1
        assert "Warning: an image is left out (2 so far)" in output
        return
    line = refused(*options, code=1)
    assert line.startswith(f"Error: 11 of {count} images are damaged, the latest: '")
    assert line.endswith("repair or remove it.")
    [run_dir] = (tmp_path / "runs").iterdir()
    assert "DatasetError" in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize("below", ["", "runs"])
def test_outdir_that_cannot_be_written(data, tmp_path, below):
    (tmp_path / "file").write_text("keep me")
    outdir = tmp_path / "file" / below
    line = refused(f"--data={data}", f"--outdir={outdir}", *SMALL, code=1)
    assert line.startswith(f"Error: Cannot make a run folder in --outdir={outdir}: ")
    assert line.endswith("Choose another one.")
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"some text, no pickle at all", "not a network snapshot"),
        ("hostile", "system"),
        ("other shape", "does not fit this run"),
    ],
)
def test_snapshots_that_no_run_can_start_from(data, tmp_path, content, message):
    path, outdir = tmp_path / "net.pkl", tmp_path / "runs"
    if content == "hostile":
        path.write_bytes(HOSTILE["os.system"][0](tmp_path / "sentinel"))
    elif content == "other shape":
        G, D = tiny.networks()
        save_snapshot(path, G=G, D=D, G_ema=G, augment_pipe=None, training_set_kwargs={})
    elif content is not None:
        path.write_bytes(content)
    line = refused(f"--data={data}", f"--outdir={outdir}", *SMALL, f"--resume={path}", code=1)
    assert "--resume" in line and message in line
    assert not outdir.exists() or not list(outdir.iterdir())
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(), "OSError"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (
            ValueError("Caught in worker 0.\nTraceback:\nbuiltins.ValueError: it is damaged"),
            "it is damaged",
        ),
    ],
)
def test_errors_end_in_one_line(error, line):
    assert last_line(error) == line


def test_a_run_that_diverges_stops_with_its_last_good_networks(data, tmp_path):
    line = refused(
        f"--data={data}",
        f"--outdir={tmp_path}",
        *SMALL,
        "--batch=128",
        "--coop-kimg=1",
        "--coop-steps=3",
        "--coop-noise=literal",
        "--coop-step-size=1000",
        code=1,
    )
    assert line.startswith("Error: the cooperative stage diverged before kimg ")
    assert "Langevin chains moved images" in line and "--coop-clamp=1" in line
    [run_dir] = tmp_path.iterdir()
    assert (run_dir / "log.txt").read_text().splitlines()[-1] == f"DivergenceError: {line[7:]}"
    [path] = run_dir.glob("network-snapshot-*.pkl")
    networks = snapshot(path)
    for name in ("G", "D", "G_ema"):
        assert all(tensor.isfinite().all() for tensor in networks[name].state_dict().values())


@pytest.mark.slow
def test_a_run_that_diverges_goes_back_once_if_asked_to(data, tmp_path):
    line = refused(
        f"--data={data}",
        f"--outdir={tmp_path}",
        *SMALL,
        "--batch=128",
        "--coop-kimg=1",
        "--coop-steps=3",
        "--coop-noise=literal",
        "--coop-step-size=1000",
        "--on-divergence=restore",
        *TINY,
        code=1,
    )
    assert line.startswith("Error: the cooperative stage diverged before kimg ")
    [run_dir] = tmp_path.iterdir()
    log = (run_dir / "log.txt").read_text()
    assert log.count("resuming from kimg 0.0 with 0.5 times the learning rates.") == 1


@pytest.mark.slow
def test_an_archive_that_is_replaced_while_training(data, tmp_path, monkeypatch):
    path = tmp_path / "data.zip"
    path.write_bytes(Path(data).read_bytes())
    iterate = training_loop.iterate

    def iterate_and_replace(run):
        iterate(run)
        if run.nimg == 256:
            tiny.write_data(tmp_path / "other.zip", count=41)
            (tmp_path / "other.zip").replace(path)

    monkeypatch.setattr(training_loop, "iterate", iterate_and_replace)
    monkeypatch.setattr("training.monitor.reporting.KIMG_PER_TICK", 0.3)
    outdir = tmp_path / "runs"
    options = (f"--data={path}", f"--outdir={outdir}", "--batch=128", *TINY)
    line = refused(*SMALL, *options, code=1)
    assert f"'{path}' has been replaced by other data since it was opened; put it back" in line
    monkeypatch.setattr(training_loop, "iterate", iterate)
    [run_dir] = outdir.iterdir()
    assert find_checkpoints(run_dir)[0].nimg == 512, "all that was trained"
    line = refused(*SMALL, *options, code=1)
    assert f"the data in '{path}' have changed since '{run_dir}' was trained on them" in line
    path.write_bytes(Path(data).read_bytes())
    _, output = trained(*options)
    assert "Resuming the unfinished run" in output


@pytest.mark.slow
def test_a_run_is_not_removed_with_its_first_picture(data, tmp_path, monkeypatch):
    train = training_loop.train

    def train_and_lose(run):
        train(run)
        (run.run_dir / "reals.png").unlink()

    monkeypatch.setattr(session, "train", train_and_lose)
    run_dir, _ = trained(f"--data={data}", f"--outdir={tmp_path}", *TINY)
    assert find_checkpoints(run_dir)


@pytest.mark.slow
def test_the_same_damage_is_counted_once(tmp_path, caplog):
    """Pillow's message about a file whose first chunk is broken is another one each time."""
    files = make_data.archive_files(make_data.pixels(200, 8, 1))
    [name] = [name for name in files if name.endswith("00000007.png")]
    files[name] = files[name][:40] + b"?" * 40
    data = make_data.write_folder(tmp_path / "data", files)
    _, output = trained(f"--data={data}", f"--outdir={tmp_path / 'runs'}", *TINY)
    assert output.count("an image is left out") == 1 and name in output


@pytest.mark.slow
def test_damage_in_the_sample_grid_is_passed_over(tmp_path):
    files = make_data.archive_files(make_data.pixels(200, 8, 1))
    [name] = [name for name in files if name.endswith("00000007.png")]
    files[name] = files[name][:45]
    data = make_data.write_zip(tmp_path / "data.zip", files)
    _, output = trained(f"--data={data}", f"--outdir={tmp_path / 'runs'}", *TINY)
    assert output.count("an image is left out (1 so far)") == 1 and name in output


def test_a_full_disk_before_processes_start_is_one_line(data, tmp_path, monkeypatch):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch_utils.spawn.tempfile.TemporaryDirectory", fail)
    line = refused(f"--data={data}", f"--outdir={tmp_path / 'runs'}", *SMALL, "--gpus=2", code=1)
    assert line == (
        "Error: [Errno 28] No space left on device; make room at "
        f"'{tmp_path / 'runs'}' and give the same command again"
    )
