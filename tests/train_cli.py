"""Calls of train.py in this process, for the tests."""

import contextlib
import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

import legacy
import train

# Drawing them takes as long as a small run does, which leaves them out where nobody looks at them.
without_curves = pytest.mark.usefixtures("no_curves")
FEW_CHANNELS = ("--g-scale=0.001953125", "--d-scale=0.001953125")  # four at 8x8
SMALL = ("--cfg=digits", "--kimg=1", "--workers=0", "--device=cpu", "--ops=ref")


@contextlib.contextmanager
def logging_as_before():
    """train.py sets up logging for its process, which is this one."""
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("training").level
    try:
        yield
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger("training").setLevel(level)


def invoke(*args):
    """Call train.py with these options; returns click's result."""
    with logging_as_before():
        return CliRunner().invoke(train.main, [str(arg) for arg in args])


def trained(*args):
    """Train to the end and return (run folder, output)."""
    result = invoke(*SMALL, *args)
    assert result.exit_code == 0, result.output
    [folder] = [line[12:] for line in result.output.splitlines() if line.startswith("Run folder: ")]
    return Path(folder), result.output


def refused(*args, code):
    """The message of a call that ends in one line."""
    result = invoke(*args)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit), "no other error may come through"
    lines = result.output.strip().splitlines()
    assert [line.startswith("Error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("Error: ") and "Traceback" not in result.output
    if code == 2:
        assert lines[-4].startswith("Usage: ") and "--help" in lines[-3]
    return lines[-1]


def ticks(run_dir):
    """The lines of stats.jsonl."""
    return [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]


def snapshot(path):
    """The networks of a snapshot."""
    with open(path, "rb") as file:
        return legacy.load_network_pkl(file)
