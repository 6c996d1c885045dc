import logging

import pytest

from tests import tiny
from training.run.run_dir import create_run_dir, describe_run, log_to
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS


def describe(**options):
    return describe_run("faces", tiny.config(**options), options)


def test_only_what_was_given_is_named():
    assert describe_run("faces", tiny.config(), {}) == "faces-digits"
    assert describe(cfg="auto") == "faces-auto1"


def test_order_of_all_parts():
    options = dict(
        coop_kimg=3, freezed=2, resume="ffhq256", batch=16, kimg=9, gamma=0.5, mirror=True,
        subset=7, cond=True, cfg="cifar", aug="ada", target=0.7, augpipe="bg", loss="ns",
        lr=0.01, d_scale=0.25, lazy=False, sn=True, brc_lookahead=2,
    )  # fmt: skip
    assert describe_run("faces", tiny.config(**options), options) == (
        "faces-cond-subset7-mirror-cifar-gamma0.5-kimg9-batch16-ada-target0.7-bg-"
        "resumeffhq256-freezed2-coop3-ns-lr0.01-dscale0.25-nolazy-sn-brclookahead2"
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (dict(gamma=0.0), "gamma0"),
        (dict(gamma=10.0), "gamma10"),
        (dict(freezed=0), "freezed0"),
        (dict(resume="some/ffhq256.pkl"), "resumecustom"),
        (dict(coop_kimg=0), ""),
        (dict(aug="fixed", p=0.25), "fixed-p0.25"),
        (dict(cond=False, mirror=False), ""),
    ],
)
def test_parts(options, part):
    assert describe(**options) == "-".join(filter(None, ["faces-digits", part]))


@pytest.mark.parametrize("name", OFFICIAL_SNAPSHOTS)
def test_official_snapshots_keep_their_names(name):
    assert describe(resume=name) == f"faces-digits-resume{name}"
    assert OFFICIAL_SNAPSHOTS[name].startswith("https://")


def test_numbers_go_on_from_the_highest(tmp_path):
    runs = tmp_path / "a" / "runs"
    assert create_run_dir(runs, "x").name == "00000-x"
    assert create_run_dir(runs, "x").name == "00001-x"
    (runs / "00041-gone-long-ago").mkdir()
    (runs / "notes-99999").mkdir()
    made = create_run_dir(str(runs), "y")
    assert made == runs / "00042-y" and made.is_dir()
    (runs / "123456-many").mkdir()
    assert create_run_dir(runs, "y").name == "123457-y"


def test_two_runs_that_start_together(tmp_path, monkeypatch):
    answers = iter([[], ["00000-x"]])
    monkeypatch.setattr("os.listdir", lambda folder: next(answers))
    (tmp_path / "00000-x").mkdir()  # made by the other one after this one had looked
    assert create_run_dir(tmp_path, "x").name == "00001-x"


@pytest.mark.parametrize("below", ["", "runs"])
def test_outdir_that_is_a_file(tmp_path, below):
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(NotADirectoryError):
        create_run_dir(tmp_path / "file" / below, "x")
    assert (tmp_path / "file").read_text() == "keep me"


def test_log_file_holds_messages_and_the_error(tmp_path):
    logger = logging.getLogger("test_run_dir")
    before = list(logging.getLogger().handlers)
    with log_to(tmp_path / "log.txt"):
        logger.warning("tick %d", 0)
    with pytest.raises(KeyError), log_to(tmp_path / "log.txt"):
        logger.warning("tick 1")
        raise KeyError("gone")
    logger.warning("not in the file")
    assert (tmp_path / "log.txt").read_text() == "tick 0\ntick 1\nKeyError: 'gone'\n"
    assert logging.getLogger().handlers == before
