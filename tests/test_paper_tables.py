"""docs/paper-tables.md: its command lines are taken by train.py, its numbers agree."""

import json
import re
from pathlib import Path

import pytest

from tests import tiny
from tests.train_cli import invoke

PAGE = (Path(__file__).parent.parent / "docs" / "paper-tables.md").read_text()
CELLS = re.findall(r"`(\w+\.zip)`|\| `(--cfg[^`]*)` \| ([\d.]+)", PAGE)
ROWS = sorted({options for _, options, _ in CELLS if options})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", size=32, channels=3)


def test_all_tables_are_there():
    assert len(ROWS) >= 40
    assert all(f"able {n}: " in PAGE for n in (1, 2, 3, 5, 6, 7, 8, 9, 12))


def test_a_command_line_has_one_number():
    """But for one contradiction of the paper, which the page names."""
    numbers, dataset = {}, None
    for name, options, fid in CELLS:
        dataset = name or dataset
        if options:
            numbers.setdefault((dataset, options), set()).add(fid)
    several = {key: fids for key, fids in numbers.items() if len(fids) > 1}
    contradiction = ("cifar10.zip", "--cfg=coopinit-base --lr=0.003 --coop-kimg=750")
    assert several == {contradiction: {"5.12", "5.85"}}
    assert "5.12 of the second row then contradicts the 5.85" in PAGE


@pytest.mark.parametrize("row", ROWS)
def test_rows(data, row):
    result = invoke(f"--data={data}", "-n", *row.split())
    assert result.exit_code == 0, result.output
    # The paper trains on 100M images with augmentation and on 25M without.
    settings = json.loads(result.output.partition("Settings: ")[2].partition("Run: ")[0])
    assert (settings["aug"] == "ada") == (settings["kimg"] == 100_000)
