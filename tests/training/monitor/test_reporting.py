import json
import logging
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import tiny
from torch_utils.training_stats import TrainingStats
from training.monitor.reporting import Reporter, format_time, status_line

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (23.4, "23s"),
        (59.6, "1m 00s"),
        (245, "4m 05s"),
        (7445, "2h 04m 05s"),
        (93840, "1d 02h 04m"),
        (864000, "10d 00h 00m"),
    ],
)
def test_format_time(seconds, text):
    assert format_time(seconds) == text


def test_status_line_is_the_official_one():
    values = {
        "Progress/tick": 0,
        "Progress/kimg": 1.0,
        "Timing/total_sec": 23.2,
        "Timing/sec_per_tick": 1.25,
        "Timing/sec_per_kimg": 312.5,
        "Timing/maintenance_sec": 0.0,
        "Resources/cpu_mem_gb": 1.5,
        "Resources/peak_gpu_mem_gb": 0.0,
        "Progress/augment": 0.0,
    }
    assert status_line(values) == (
        "tick 0     kimg 1.0      time 23s          sec/tick 1.2     sec/kimg 312.50  "
        "maintenance 0.0    cpumem 1.50   gpumem 0.00   augment 0.000"
    )


@pytest.fixture
def stats():
    return TrainingStats()


@pytest.fixture
def reporter(tmp_path, stats):
    reporter = Reporter(tiny.config(batch=32), tmp_path, stats, CPU)
    with reporter:
        yield reporter


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]


def test_the_first_tick_ends_after_one_batch(reporter):
    assert reporter.tick_is_due(32)
    reporter.end_tick(32, "cooperative", {})
    assert not reporter.tick_is_due(4031)
    assert reporter.tick_is_due(4032)


def test_a_tick_in_stats_jsonl(reporter, stats, tmp_path):
    with reporter.timed("Gmain"):
        pass
    stats.report("Loss/G/loss", torch.tensor([1.0, 3.0]))
    collected = reporter.end_tick(32, "cooperative", {"Progress/augment": 0.25})
    reporter.maintenance()
    reporter.end_tick(4032, "adversarial", {})
    first, second = lines(tmp_path)
    assert first["Loss/G/loss"] == {"num": 2, "mean": 2.0, "std": 1.0} == collected["Loss/G/loss"]
    for name in (
        "Progress/tick Progress/kimg Progress/augment Timing/total_sec Timing/sec_per_tick "
        "Timing/sec_per_kimg Timing/maintenance_sec Timing/Gmain Resources/cpu_mem_gb "
        "Resources/peak_gpu_mem_gb"
    ).split():
        assert first[name].keys() == {"num", "mean", "std"} and first[name]["num"] == 1
    assert first["Progress/augment"]["mean"] == 0.25
    assert first["Resources/cpu_mem_gb"]["mean"] > 0
    assert (
        first["Progress/cooperative"]["mean"] == 1 and second["Progress/cooperative"]["mean"] == 0
    )
    assert (first["Progress/kimg"]["mean"], second["Progress/kimg"]["mean"]) == (0.032, 4.032)
    assert second["Progress/tick"]["mean"] == 1
    assert "Loss/G/loss" not in second and "Timing/Gmain" not in second, "each tick starts afresh"
    assert first["timestamp"] <= second["timestamp"]


def test_what_json_cannot_say_becomes_null(reporter, stats, tmp_path, capfd):
    stats.report("Loss/G/loss", math.nan)
    reporter.end_tick(32, "cooperative", {})
    text = (tmp_path / "stats.jsonl").read_text()
    entry = json.loads(text, parse_constant=pytest.fail)["Loss/G/loss"]
    assert entry == {"num": 1, "mean": None, "std": None}
    assert "NaN" not in capfd.readouterr().err


def test_tensorboard_has_the_same_names(tmp_path, stats):
    with Reporter(tiny.config(), tmp_path, stats, CPU) as reporter:
        stats.report("Loss/G/loss", 2.0)
        reporter.end_tick(32, "cooperative", {})
        stats.report("Loss/D/loss", math.inf)
        reporter.end_tick(4032, "adversarial", {})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == lines(tmp_path)[0].keys() - {"timestamp"}
    assert [event.step for event in events.Scalars("Progress/tick")] == [0, 4]  # kimg
    (event,) = events.Scalars("Loss/G/loss")
    assert (event.step, event.value) == (0, 2.0)


def test_status_line_goes_to_the_log(reporter, caplog):
    with caplog.at_level(logging.INFO, logger="training.monitor.reporting"):
        reporter.end_tick(32, "cooperative", {})
    (record,) = caplog.records
    assert record.getMessage().startswith("tick 0     kimg 0.0      time ")


def test_progress_bar(tmp_path, stats, capfd, monkeypatch):
    monkeypatch.setattr("training.monitor.reporting.REFRESH_SECONDS", 0.0)
    stats.report("Loss/scores/real", 1.5)
    with Reporter(tiny.config(), tmp_path, stats, CPU) as reporter:
        reporter.progress(512, "cooperative")
        reporter.progress(1024, "adversarial")  # beyond the thousand images of the run
    shown = capfd.readouterr().err.split("\r")[-1]
    assert shown.startswith("adversarial, kimg 1.0 100%|")
    assert "sec/kimg, D(real) +1.50, D(fake) -" in shown


def test_timers_keep_the_latest_span_of_a_phase(tmp_path, stats, monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 10.5])
    monkeypatch.setattr("training.monitor.reporting.time.perf_counter", lambda: next(clock))
    with Reporter(tiny.config(), tmp_path, stats, CPU) as reporter:
        for _ in range(2):
            with reporter.timed("Dmain"):
                pass
        assert reporter.end_tick(32, "adversarial", {})["Timing/Dmain"]["mean"] == 500


def test_stats_of_a_tick_are_on_disk_at_once(reporter, tmp_path):
    reporter.end_tick(32, "cooperative", {})
    assert len(lines(tmp_path)) == 1


def test_scores_are_not_read_every_iteration(reporter, stats, monkeypatch):
    monkeypatch.setattr(stats, "mean", lambda name: pytest.fail("synchronised with the GPU"))
    monkeypatch.setattr("training.monitor.reporting.REFRESH_SECONDS", math.inf)
    reporter.progress(32, "cooperative")
