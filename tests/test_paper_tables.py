"""Every command line of docs/paper-tables.md is one that train.py takes."""

import json
import re
from pathlib import Path

import pytest

from tests import tiny
from tests.train_cli import invoke

PAGE = Path(__file__).parent.parent / "docs" / "paper-tables.md"
ROWS = re.findall(r"`(--cfg[^`]*)`", PAGE.read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", size=32, channels=3)


def test_all_tables_are_there():
    assert len(ROWS) >= 50


@pytest.mark.parametrize("row", sorted(set(ROWS)))
def test_rows(data, row):
    result = invoke(f"--data={data}", "-n", *row.split())
    assert result.exit_code == 0, result.output
    # The paper trains on 100M images with augmentation and on 25M without.
    settings = json.loads(result.output.partition("Settings: ")[2].partition("Run: ")[0])
    assert (settings["aug"] == "ada") == (settings["kimg"] == 100_000)
