import json
import multiprocessing
import os

import pytest

from tests import tiny
from training.checkpoint import StateError, write_state
from training.config import ConfigError
from training.continuation import (
    changed_settings,
    cut_journals,
    find_run,
    find_unfinished,
    journal_sizes,
    take_up,
)
from training.run_dir import lock_run


def make_run(outdir, number, nimg=500, **options):
    """A run folder with settings and a state."""
    run_dir = outdir / f"{number:05d}-tiny"
    run_dir.mkdir(parents=True)
    (run_dir / "training_options.json").write_text(tiny.config(**options).to_json())
    if nimg is not None:
        content = {"format": 1, "parts": {"training": {"nimg": nimg}}}
        write_state(run_dir, nimg, content | {"journals": journal_sizes(run_dir)})
    return run_dir


def test_the_newest_unfinished_run_of_the_same_settings(tmp_path):
    assert find_unfinished(tmp_path / "nowhere", tiny.config()) is None
    make_run(tmp_path, 1)
    expected = make_run(tmp_path, 2)
    make_run(tmp_path, 3, gamma=7.0)
    make_run(tmp_path, 4, nimg=1000)  # finished
    make_run(tmp_path, 5, nimg=None)  # nothing to go on from
    (make_run(tmp_path, 6) / "training_options.json").write_text("{")
    (tmp_path / "notes-7").mkdir()
    assert find_unfinished(tmp_path, tiny.config()) == expected
    assert find_unfinished(tmp_path, tiny.config(seed=9)) is None


@pytest.mark.parametrize("options", [dict(workers=1), dict(snap=3), dict(save_minutes=1.0)])
def test_what_does_not_make_another_run(tmp_path, options):
    run_dir = make_run(tmp_path, 0)
    assert find_unfinished(tmp_path, tiny.config(**options)) == run_dir


def hold(run_dir, held, release):
    with lock_run(run_dir):
        held.set()
        release.wait()


def test_a_run_of_another_process_is_left_alone(tmp_path):
    run_dir = make_run(tmp_path, 0)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(run_dir, held, release))
    process.start()
    assert held.wait(60)
    assert find_unfinished(tmp_path, tiny.config()) is None
    with pytest.raises(BlockingIOError, match="Another process is training in"):
        with lock_run(run_dir):
            pass
    process.kill()  # the lock goes with the process
    process.join()
    assert find_unfinished(tmp_path, tiny.config()) == run_dir


def test_runs_that_resume_names(tmp_path):
    with pytest.raises(StateError, match="no run in --outdir=.* holds a training state"):
        find_run(tmp_path, "latest")
    older, newest = make_run(tmp_path, 1), make_run(tmp_path, 12, nimg=1000)
    empty = make_run(tmp_path, 13, nimg=None)
    assert find_run(tmp_path, "latest") == newest
    assert find_run("elsewhere", str(older)) == older
    with pytest.raises(StateError, match=f"--resume={empty}: this folder holds no training"):
        find_run(tmp_path, str(empty))


def test_settings_may_change(tmp_path):
    run_dir = make_run(tmp_path, 0, batch=8)
    config, lines = changed_settings(run_dir, dict(batch=32, gamma=0.5, gpus=2, kimg=None))
    assert (config.batch, config.gamma, config.gpus) == (32, 0.5, 2)
    assert config.batch_gpu * config.gpus <= config.batch
    assert set(lines) >= {"batch: 8 -> 32", "gamma: 0.01 -> 0.5", "gpus: 1 -> 2"}
    assert changed_settings(run_dir, {}) == (tiny.config(batch=8), [])


def test_a_batch_that_does_not_divide(tmp_path):
    run_dir = make_run(tmp_path, 0, batch=8)
    assert changed_settings(run_dir, dict(batch=12))[0].batch_gpu == 12
    with pytest.raises(ConfigError, match="--batch=12 cannot be split over --gpus=5"):
        changed_settings(run_dir, dict(batch=12, gpus=5))


@pytest.mark.parametrize("options", [dict(d_scale=0.5), dict(seed=1), dict(mirror=True)])
def test_what_may_not_change(tmp_path, options):
    run_dir = make_run(tmp_path, 0)
    [name] = options
    with pytest.raises(ConfigError, match=f"go on with another --{name.replace('_', '-')}"):
        changed_settings(run_dir, options)


@pytest.mark.parametrize("text", ["{", "[]", '{"data": "x"}', json.dumps({"a": 1})])
def test_settings_that_cannot_be_read(tmp_path, text):
    run_dir = make_run(tmp_path, 0)
    (run_dir / "training_options.json").write_text(text)
    with pytest.raises(StateError, match="Cannot read .*not of this version"):
        changed_settings(run_dir, {})


def test_a_finished_run(tmp_path):
    run_dir = make_run(tmp_path, 0, nimg=1000)
    with pytest.raises(StateError, match="is finished at kimg 1.0; give a larger --kimg"):
        take_up(run_dir, tiny.config())
    assert take_up(run_dir, tiny.config(kimg=2))


def test_journals_are_cut_back(tmp_path):
    names = ["stats.jsonl", "log.txt", "metric-fid50k_full.jsonl", "events.out.tfevents.1"]
    for name in names:
        (tmp_path / name).write_text("before\n")
    sizes = journal_sizes(tmp_path)
    assert sizes == dict.fromkeys(names, 7)
    for name in [*names, "events.out.tfevents.2", "fakes000000.png"]:
        with open(tmp_path / name, "a") as file:
            file.write("after\n")
    os.truncate(tmp_path / "log.txt", 3)  # lost by the disk
    cut_journals(tmp_path, sizes)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == dict.fromkeys(names, "before\n") | {
        "log.txt": "bef", "fakes000000.png": "after\n",
    }  # fmt: skip
