"""Write docs/options.md, all options and presets; `--check` compares instead.

python docs/generate.py [--check]
"""

import importlib
import re
import sys
from pathlib import Path

import click

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from training.monitor.diagnostics import SYMPTOMS  # noqa: E402
from training.settings.config import setting_docs  # noqa: E402
from training.settings.presets import COMMON, PRESETS  # noqa: E402

COMMANDS = ("train", "generate", "calc_metrics", "export", "dataset_tool")
INTRODUCTION = """\
# Options

Generated from the code by `make docs`; `python COMMAND.py --help` says the same.
"""
PRESET_NOTE = """\
`auto`, the default, chooses by the resolution and `--gpus`; `--dry-run` prints what comes out.
`ref_gpus` is the number of processes that a preset was made for: a forward pass sees
`batch / ref_gpus` images, unless `--batch` is given.
"""
SYMPTOM_NOTE = """\
Looked for at the end of every tick (4 kimg, or the end of a stage); the run says so once, or stops
with exit status 3. A run whose losses are not finite, or whose scores or chains leave all bounds,
always stops, with exit status 1, and keeps its last good networks. Status 2: impossible options.
"""


def options_page():
    """Text of docs/options.md."""
    parts = [INTRODUCTION]
    for name in COMMANDS:
        command = importlib.import_module(name).main
        context = click.Context(command, **command.context_settings | {"terminal_width": 100})
        sections = getattr(command, "sections", {"": command.params})
        parts.append(f"## {name}.py\n")
        for title, options in sections.items():
            rows = [option_row(option.get_help_record(context)) for option in options]
            parts += [f"### {title}\n"] if title else []
            parts.append(table(("option", "default", "meaning"), rows))
        if name == "train":
            parts += ["### Presets of `--cfg`\n", PRESET_NOTE, presets_table()]
            parts += ["### Symptoms of `--stop-on`\n", SYMPTOM_NOTE, symptoms_table()]
    return "\n".join(parts)


def option_row(record):
    """(option, default, meaning) from click's help record, which ends in [default: 8; x>=1]."""
    left, text = record
    meaning, extra = re.fullmatch(r"(.*?)((?:\s*\[[^\[\]]*\])*)", text, re.DOTALL).groups()
    facts = [part for bracket in re.findall(r"\[(.*?)\]", extra) for part in bracket.split("; ")]
    bounds = "".join(f" ({fact.replace('x', '')})" for fact in facts if fact.startswith("x"))
    defaults = [fact.removeprefix("default: ") for fact in facts if not fact.startswith("x")]
    return f"`{left}`", ", ".join(defaults), meaning + bounds


def presets_table():
    """What every preset sets; a column a preset."""
    presets = {name: COMMON | values for name, values in PRESETS.items()}
    docs = setting_docs() | {
        "ref_gpus": "processes that the preset was made for",
        "scale": "scale of G and D: channels(res) = min(16384 s / res, channel_max)",
    }
    settings = sorted({name for values in presets.values() for name in values})
    rows = [
        (f"`{name}`", *(shown(presets[p].get(name, "")) for p in presets), docs[name])
        for name in settings
    ]
    return table(("setting", *(f"`{name}`" for name in presets), "meaning"), rows)


def symptoms_table():
    """What a run is warned of."""
    rows = [(f"`{name}`", s.meaning, f"{s.advice}.") for name, s in SYMPTOMS.items()]
    return table(("symptom", "seen when", "advice"), rows)


def shown(value):
    """Short text of a setting."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "".join(f"| {line} |\n" for line in cells)


def main():
    """Write the page, or with --check exit 1 where it is out of date."""
    path, text = DOCS / "options.md", options_page()
    if sys.argv[1:] != ["--check"]:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        sys.exit("docs/options.md is out of date. Run `make docs` and commit the result.")


if __name__ == "__main__":
    main()
