import logging

import pytest

from training.run.run_dir import create_run_dir, log_to


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
