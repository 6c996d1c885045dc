import errno
import json
import multiprocessing
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from dnnlib.errors import OptionError
from tests import tiny
from training.run.checkpoint_file import CheckpointError, write_checkpoint
from training.run.resume import (
    changed_settings,
    find_run,
    find_unfinished,
    journal_sizes,
    read_settings,
    restore,
    truncate_journals,
    write_settings,
)
from training.run.run_dir import JOB, lock_run

DATA = SimpleNamespace(signature="as it was")


def content(run_dir, nimg=500, **others):
    """What a state holds, as far as it matters here."""
    return {
        "format": 1,
        "parts": {"training": {"progress": {"nimg": nimg}}, "snapshots": {}},
        "random": [],
        "journals": journal_sizes(run_dir),
        "dataset": "as it was",
    } | others


def make_run(outdir, number, nimg=500, **options):
    """A run folder with settings and a state."""
    run_dir = outdir / f"{number:05d}-tiny"
    run_dir.mkdir(parents=True)
    (run_dir / "training_options.json").write_text(tiny.config(**options).to_json())
    if nimg is not None:
        write_checkpoint(run_dir, 1, nimg, content(run_dir, nimg))
    return run_dir


def test_the_newest_unfinished_run_of_the_same_settings(tmp_path):
    assert find_unfinished(tmp_path / "nowhere", tiny.config()) == (None, [])
    make_run(tmp_path, 1)
    expected = make_run(tmp_path, 2)
    make_run(tmp_path, 3, gamma=7.0)
    make_run(tmp_path, 4, nimg=1000)  # finished
    make_run(tmp_path, 5, nimg=None)  # nothing to go on from
    (make_run(tmp_path, 6) / "training_options.json").write_text("{")
    (tmp_path / "notes-7").mkdir()
    assert find_unfinished(tmp_path, tiny.config()) == (expected, [])
    run_dir, lines = find_unfinished(tmp_path, tiny.config(seed=9))
    assert run_dir is None
    assert lines == [
        f"00006-tiny is left alone: Cannot read '{tmp_path}/00006-tiny/training_options.json': it "
        "is damaged, or not of this version.",
        "00003-tiny is unfinished, too, but differs in --seed (0 there), --gamma (7.0 there); "
        f"--resume={tmp_path}/00003-tiny resumes it.",
        *(
            f"{name} is unfinished, too, but differs in --seed (0 there); "
            f"--resume={tmp_path}/{name} resumes it."
            for name in ("00002-tiny", "00001-tiny")
        ),
    ]


@pytest.mark.parametrize("options", [dict(workers=1), dict(snap=3), dict(save_minutes=1.0)])
def test_what_does_not_make_another_run(tmp_path, options):
    run_dir = make_run(tmp_path, 0)
    [name] = options
    changed = f"{name}: {getattr(tiny.config(), name)} -> {options[name]}"
    assert find_unfinished(tmp_path, tiny.config(**options)) == (run_dir, [changed])


def test_a_run_of_very_other_settings_is_not_mentioned(tmp_path):
    make_run(tmp_path, 0, gamma=7.0, seed=3, batch=16, batch_gpu=16, kimg=5)
    assert find_unfinished(tmp_path, tiny.config()) == (None, [])


def test_a_command_that_starts_over_goes_on_with_runs_of_its_own_alone(tmp_path):
    for number, job in enumerate(["", "slurm 1", "slurm 2"]):
        run_dir = make_run(tmp_path, number)
        (run_dir / JOB).write_text(job)
    assert find_unfinished(tmp_path, tiny.config()) == (run_dir, [])
    assert find_unfinished(tmp_path, tiny.config(), "slurm 1")[0].name == "00001-tiny"
    assert find_unfinished(tmp_path, tiny.config(), "slurm 3") == (None, [])


def test_a_damaged_last_state_finishes_no_run(tmp_path):
    run_dir = make_run(tmp_path, 0, nimg=1000)
    assert find_unfinished(tmp_path, tiny.config()) == (None, [])
    [state] = run_dir.glob("checkpoint-*")
    state.write_bytes(state.read_bytes()[:-1])
    assert find_unfinished(tmp_path, tiny.config()) == (run_dir, [])


def hold(run_dir, held, release):
    with lock_run(run_dir):
        held.set()
        release.wait()


def test_a_run_of_another_process(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    run_dir = make_run(tmp_path, 0)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(run_dir, held, release))
    process.start()
    assert held.wait(60)
    with monkeypatch.context() as patch:
        patch.setattr("training.run.run_dir.PATIENCE", 0)
        with pytest.raises(BlockingIOError, match="Another process is training .*--restart"):
            with lock_run(run_dir):
                pass
    threading.Timer(1, process.kill).start()  # the lock goes with the process
    with lock_run(run_dir):
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
    assert caplog.messages == [f"Waiting for another process that is training in '{run_dir}'."]


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    run_dir = make_run(tmp_path, 0)
    monkeypatch.setattr("training.run.run_dir.fcntl.lockf", refuse)
    with lock_run(run_dir):
        assert find_unfinished(tmp_path, tiny.config()) == (run_dir, [])
    assert "cannot be locked (No locks available)" in caplog.text


def test_settings_are_written_whole_and_only_where_they_differ(tmp_path, monkeypatch):
    write_settings(tmp_path, tiny.config())
    path = tmp_path / "training_options.json"
    before = path.stat().st_ino
    write_settings(tmp_path, tiny.config())
    assert path.stat().st_ino == before

    def killed(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_settings(tmp_path, tiny.config(seed=1))
    assert read_settings(tmp_path) == tiny.config()
    write_settings(tmp_path, tiny.config(seed=1))
    assert read_settings(tmp_path) == tiny.config(seed=1)


def test_runs_that_resume_names(tmp_path):
    with pytest.raises(CheckpointError, match="no run in --outdir=.* can be resumed"):
        find_run(tmp_path, "latest")
    older, finished = make_run(tmp_path, 1), make_run(tmp_path, 12, nimg=1000)
    empty = make_run(tmp_path, 13, nimg=None)
    assert find_run(tmp_path, "latest") == (older, [])
    assert find_run(tmp_path, "latest", kimg=2) == (finished, [])
    assert find_run("elsewhere", str(older)) == (older, [])
    with pytest.raises(CheckpointError, match=f"--resume={empty}: this folder holds no checkpoint"):
        find_run(tmp_path, str(empty))
    make_run(tmp_path / "done", 0, nimg=1000)
    with pytest.raises(CheckpointError, match="all runs in .* are finished; give a larger --kimg"):
        find_run(tmp_path / "done", "latest")
    (make_run(tmp_path, 14) / "training_options.json").write_text("{")
    with pytest.raises(
        CheckpointError, match="a larger --kimg .* 00002-tiny is left alone: Cannot"
    ):
        broken = make_run(tmp_path / "done", 2)
        (broken / "training_options.json").write_text("{")
        find_run(tmp_path / "done", "latest")
    run_dir, [line] = find_run(tmp_path, "latest")
    assert run_dir == older and line.startswith("00014-tiny is left alone: Cannot read ")


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
    with pytest.raises(OptionError, match="--batch=12 cannot be split over --gpus=5"):
        changed_settings(run_dir, dict(batch=12, gpus=5))


@pytest.mark.parametrize("options", [dict(d_scale=0.5), dict(seed=1), dict(mirror=True)])
def test_what_may_not_change(tmp_path, options):
    run_dir = make_run(tmp_path, 0)
    [name] = options
    with pytest.raises(
        OptionError, match=f"cannot be resumed with another --{name.replace('_', '-')}"
    ):
        changed_settings(run_dir, options)


def with_another(**values):
    return json.dumps(json.loads(tiny.config().to_json()) | values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"data": "x"}',
        json.dumps({"a": 1}),
        with_another(data=5),
        with_another(metrics=["x"]),
        with_another(mirror=1),
        with_another(kimg=1.5),
        with_another(batch=True),
        with_another(stop_on=[1]),
        with_another(stop_on=3),
        with_another(gamma="1"),
        with_another(unknown=1),
        with_another(subset="all"),
    ],
)
def test_settings_that_cannot_be_read(tmp_path, text):
    run_dir = make_run(tmp_path, 0)
    (run_dir / "training_options.json").write_text(text)
    with pytest.raises(
        CheckpointError, match="Cannot read .*it is damaged, or not of this version"
    ):
        changed_settings(run_dir, {})


def test_settings_that_can_be_read(tmp_path):
    run_dir = make_run(tmp_path, 0)
    values = dict(gamma=1, subset=10, stop_on=["d-saturated"], coop_noise="literal", lr_g=0.5)
    (run_dir / "training_options.json").write_text(with_another(**values))
    config = read_settings(run_dir)
    assert config.stop_on == ("d-saturated",) and config.gamma == 1


def test_a_finished_run(tmp_path):
    run_dir = make_run(tmp_path, 0, nimg=1000)
    with pytest.raises(CheckpointError, match="is finished at kimg 1.0; give a larger --kimg"):
        restore(run_dir, tiny.config(), DATA)
    assert restore(run_dir, tiny.config(kimg=2), DATA)


def test_other_data_are_refused_and_nothing_is_cut(tmp_path):
    run_dir = make_run(tmp_path, 0)
    (run_dir / "stats.jsonl").write_text("after the state")
    with pytest.raises(CheckpointError, match="the data in '.*' have changed since"):
        restore(run_dir, tiny.config(), SimpleNamespace(signature="other"))
    assert (run_dir / "stats.jsonl").read_text() == "after the state"


def test_journals_are_cut_back(tmp_path):
    names = ["stats.jsonl", "events.out.tfevents.1"]
    for name in names:
        (tmp_path / name).write_text("before\n")
    sizes = journal_sizes(tmp_path)
    assert sizes == dict.fromkeys(names, 7)
    for name in [*names, "events.out.tfevents.2", "fakes000000.png", "log.txt"]:
        with open(tmp_path / name, "a") as file:
            file.write("after\n")
    os.truncate(tmp_path / "stats.jsonl", 3)  # lost by the disk
    truncate_journals(tmp_path, sizes, 8000)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == dict.fromkeys(names, "before\n") | {
        "stats.jsonl": "bef",
        "fakes000000.png": "after\n",
        "log.txt": "after\n",
    }


def measured(kimg, fid):
    """A line of metric-fid50k_full.jsonl."""
    return json.dumps(
        {"results": {"fid50k_full": fid}, "snapshot_pkl": f"network-snapshot-{kimg:06d}.pkl"}
    )


def test_of_measurements_those_of_lost_snapshots_are_cut(tmp_path):
    path = tmp_path / "metric-fid50k_full.jsonl"
    before = [measured(0, 9.0), measured(4, 8.0)]
    path.write_text("\n".join(before) + "\n")
    sizes = journal_sizes(tmp_path)
    others = [measured(0, 9.1), '{"results": {}, "snapshot_pkl": "elsewhere.pkl"}', "???"]
    appended = [measured(8, 7.0), *others, measured(12, 6.0)]
    path.write_text("\n".join([*before, *appended, measured(0, 5.0)[:-9]]))
    new = tmp_path / "metric-is50k.jsonl"
    new.write_text(measured(0, 1.5) + "\n" + measured(9, 1.6) + "\n")
    for _ in range(2):
        truncate_journals(tmp_path, sizes, 8100)
        assert path.read_text().splitlines() == [*before, measured(8, 7.0), *others]
        assert new.read_text() == measured(0, 1.5) + "\n"
    truncate_journals(tmp_path, sizes, 8100, "network-snapshot-000008.pkl", ["is50k"])
    assert path.read_text().splitlines() == [*before, measured(8, 7.0), *others]
    truncate_journals(
        tmp_path, sizes, 8100, "network-snapshot-000008.pkl", ["is50k", "fid50k_full"]
    )
    assert path.read_text().splitlines() == [*before, *others], "it will be measured again"


@pytest.mark.parametrize(
    "others",
    [
        dict(parts=[]),
        dict(parts={}),
        dict(parts={"training": []}),
        dict(random="x"),
        dict(parts={"training": {"progress": {"nimg": "x"}}, "snapshots": {}}),
        dict(journals=["stats.jsonl"]),
        dict(dataset=1),
        dict(journals={"stats.jsonl": "long"}),
        dict(journals={"stats.jsonl": -1}),
    ],
)
def test_states_that_hold_other_things(tmp_path, others):
    run_dir = make_run(tmp_path, 0, nimg=None)
    write_checkpoint(run_dir, 1, 500, content(run_dir, **others))
    (run_dir / "stats.jsonl").write_text("kept")
    with pytest.raises(CheckpointError, match="is no checkpoint of this version; --restart"):
        restore(run_dir, tiny.config(), DATA)
    assert (run_dir / "stats.jsonl").read_text() == "kept"
