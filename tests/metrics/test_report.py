import json

import pytest

from metrics.evaluation import Result
from metrics.report import append_result, describe, json_line, keep_best, run_dir_of


def result(value, name="fid2k_full", better="lower", **changes):
    fields = dict(
        metric=name,
        values={name: value},
        better={name: better} if better else {},
        seconds=62.0,
        detector={"name": "inception", "sha256": "ab"},
        num_real=7,
        num_generated=2000,
        processes=2,
        settings={"seed": 0, "noise_mode": "random"},
    )
    return Result(**(fields | changes))


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "00000-run"
    folder.mkdir()
    (folder / "training_options.json").write_text("{}")
    (folder / "network-snapshot-000004.pkl").write_bytes(b"four")
    return folder


def test_the_official_fields_and_ours(run_dir):
    snapshot = run_dir / "network-snapshot-000004.pkl"
    line = json.loads(json_line(result(3.5), str(snapshot), run_dir))
    timestamp = line.pop("timestamp")
    assert timestamp > 1e9 and line == {
        "results": {"fid2k_full": 3.5},
        "metric": "fid2k_full",
        "total_time": 62.0,
        "total_time_str": "1m 02s",
        "num_gpus": 2,
        "snapshot_pkl": "network-snapshot-000004.pkl",
        "detector": {"name": "inception", "sha256": "ab"},
        "num_real": 7,
        "num_generated": 2000,
        "seed": 0,
        "noise_mode": "random",
    }


def test_a_snapshot_outside_of_runs(run_dir, tmp_path):
    assert run_dir_of(str(run_dir / "network-snapshot-000004.pkl")) == run_dir
    assert run_dir_of(str(tmp_path / "other.pkl")) is None


def record(run_dir, value, content, **changes):
    """Measure a snapshot in a run; returns the best files written."""
    snapshot = run_dir / "network-snapshot-000004.pkl"
    snapshot.write_bytes(content)
    found = result(value, **changes)
    append_result(run_dir, found, json_line(found, str(snapshot), run_dir))
    return [path.name for path in keep_best(run_dir, found, snapshot)]


def best(run_dir, name="fid2k_full"):
    return (run_dir / f"network-best-{name}.pkl").read_bytes()


def test_the_best_snapshot_is_kept_also_after_the_process_has_ended(run_dir):
    assert record(run_dir, 9.0, b"a") == ["network-best-fid2k_full.pkl"]
    assert record(run_dir, 7.0, b"b") and best(run_dir) == b"b"
    assert not record(run_dir, 7.0, b"c") and best(run_dir) == b"b"
    assert not record(run_dir, 8.0, b"d") and best(run_dir) == b"b"
    with open(run_dir / "metric-fid2k_full.jsonl", "a") as file:
        file.write('{"results": {"fid2k')  # a run that was killed
        file.write("\n")
    assert record(run_dir, 6.0, b"e") and best(run_dir) == b"e"


def test_only_what_was_measured_alike_is_compared(run_dir):
    record(run_dir, 5.0, b"a")
    other = [
        dict(detector={"name": "inception", "sha256": "cd"}),
        dict(num_real=8),
        dict(num_generated=20),
        dict(settings={"seed": 1, "noise_mode": "random"}),
        dict(settings={"seed": 0, "noise_mode": "const"}),
    ]
    for number, changes in enumerate(other):
        assert record(run_dir, 9.0, b"%d" % number, **changes) and best(run_dir) == b"%d" % number
    assert not record(run_dir, 6.0, b"b"), "5.0 was measured in the same way"


def test_a_better_one_that_was_not_kept_is_kept_later(run_dir):
    """As calc_metrics.py only adds a line."""
    earlier, found = run_dir / "network-snapshot-000000.pkl", result(7.0)
    earlier.write_bytes(b"a")
    append_result(run_dir, found, json_line(found, str(earlier), run_dir))
    assert record(run_dir, 9.0, b"b") and best(run_dir) == b"a"
    assert not record(run_dir, 8.0, b"c") and best(run_dir) == b"a"
    (run_dir / "network-best-fid2k_full.pkl").unlink()
    earlier.unlink()
    assert not record(run_dir, 8.0, b"d"), "it is lost, and this is not the best"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_the_best(run_dir, value):
    assert not record(run_dir, value, b"a", better="higher")
    record(run_dir, 5.0, b"b")
    assert not record(run_dir, value, b"c") and best(run_dir) == b"b"


def test_a_snapshot_that_is_a_link(run_dir, tmp_path):
    (tmp_path / "elsewhere.pkl").write_bytes(b"x")
    link = run_dir / "network-snapshot-000008.pkl"
    link.symlink_to(tmp_path / "elsewhere.pkl")
    line = json.loads(json_line(result(1.0), str(link), run_dir))
    assert line["snapshot_pkl"] == "network-snapshot-000008.pkl"


def test_higher_is_better_for_some(run_dir):
    for value, content in ((0.3, b"a"), (0.5, b"b"), (0.4, b"c")):
        record(run_dir, value, content, name="pr2k3_full_recall", better="higher")
    assert best(run_dir, "pr2k3_full_recall") == b"b"


def test_a_metric_without_a_best(run_dir):
    assert record(run_dir, 5, b"a", better=None) == []


def test_words_for_people():
    values = {"a": 1.23456, "b": 7, "c": [0, 10, 20]}
    lines = describe(result(0, values=values))
    assert lines[:3] == ["a 1.2346", "b 7", "c:"]
    assert [line.count("#") for line in lines[3:]] == [0, 20, 40]
    assert describe(result(0, values={"none": [0, 0]}))[0] == "none:"
