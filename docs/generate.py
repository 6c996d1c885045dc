"""Write docs/options.md, and the parts of docs/architecture.md that follow from the code.

With `--check` compare instead.

python docs/generate.py [--check]
"""

import importlib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from docs.rooms import DOORS, MODULES, ROOT, entered, summary
from training.monitor.diagnostics import SYMPTOMS
from training.settings.config import TrainingConfig
from training.settings.family_settings import config_classes
from training.settings.setting import settings_of

COMMANDS = ("train", "generate", "calc_metrics", "export", "dataset_tool")
INTRODUCTION = """\
# Options

Generated from the code by `make docs`; `python COMMAND.py --help` says the same.
"""
PRESET_NOTE = """\
`auto`, the default, chooses by the resolution and `--gpus`; `--dry-run` prints what comes out. A
forward pass sees at most `batch_gpu` images; where `--batch` is given, all those of a process.
"""
SYMPTOM_NOTE = """\
Looked for at the end of every tick (4 kimg, or the end of a stage); the run says so once, or stops
with exit status 3. A run whose losses are not finite, or whose scores or chains leave all bounds,
always stops, with exit status 1, and keeps its last good networks. Status 2: impossible options.
"""


def options_page() -> str:
    """Text of docs/options.md."""
    parts = [INTRODUCTION]
    for name in COMMANDS:
        command = importlib.import_module(name).main
        parts.append(f"## {name}.py\n")
        sections = getattr(command, "sections", {"": command.params})
        for title, options in sections.items():
            parts += [f"### {title}\n"] if title else []
            parts.append(options_table(command, options))
        if name == "train":
            parts += ["### Presets of `--cfg`\n", PRESET_NOTE]
            for family in config_classes().values():
                parts += [f"#### {family.title()}\n", presets_table(family)]
            parts += ["### Symptoms of `--stop-on`\n", SYMPTOM_NOTE, symptoms_table()]
    return "\n".join(parts)


def options_table(command: click.Command, options: Iterable[click.Parameter]) -> str:
    """A table of options of a command, as its help text describes them."""
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": 100}
    context = click.Context(command, **settings)
    records = [option.get_help_record(context) for option in options]
    rows = [option_row(record) for record in records if record is not None]
    return table(("option", "default", "meaning"), rows)


def option_row(record: tuple[str, str]) -> tuple[str, str, str]:
    """(option, default, meaning) from click's help record, which ends in [default: 8; x>=1]."""
    left, text = record
    meaning = re.sub(r"(?:\s*\[[^\[\]]*\])+\Z", "", text)
    facts = [
        part
        for bracket in re.findall(r"\[(.*?)\]", text[len(meaning) :])
        for part in bracket.split("; ")
    ]
    bounds = "".join(f" ({fact.replace('x', '')})" for fact in facts if fact.startswith("x"))
    defaults = [fact.removeprefix("default: ") for fact in facts if not fact.startswith("x")]
    return f"`{left}`", ", ".join(defaults), meaning + bounds


def presets_table(family: type[TrainingConfig]) -> str:
    """What every preset of a family sets, a column per preset; computed ones are left out."""
    presets = {name: values for name, values in family.presets().items() if values}
    declared = settings_of(family)
    names = sorted({name for values in presets.values() for name in values})
    rows = [
        (f"`{name}`", *(shown(values.get(name, "")) for values in presets.values()), meaning)
        for name, meaning in ((name, declared[name].meaning) for name in names)
    ]
    return table(("setting", *(f"`{name}`" for name in presets), "meaning"), rows)


def symptoms_table() -> str:
    """What a run is warned of."""
    rows = [(f"`{name}`", s.meaning, f"{s.advice}.") for name, s in SYMPTOMS.items()]
    return table(("symptom", "seen when", "advice"), rows)


def floor_plan() -> str:
    """The rooms and who enters whom, as a Mermaid diagram, without arrows that follow from others.

    What every room may enter, dnnlib and torch_utils, has none.
    """
    everywhere = {"dnnlib", "torch_utils"}
    rooms = entered()
    doors = set().union(*(rooms.pop(door) for door in DOORS))
    rooms = {room: others - everywhere for room, others in rooms.items()}
    rooms["doors"] = doors - everywhere
    lines = ["```mermaid", "flowchart TD", f'  doors["{"<br>".join(f"{d}.py" for d in DOORS)}"]']
    for room in sorted(rooms.keys() - {"doors"}):
        path = MODULES[room]
        name = f"{room.replace('.', '/')}/" if path.stem == "__init__" else path.name
        what = summary(path).rstrip(".").replace("`", "")
        lines.append(f'  {_id(room)}["<b>{name}</b><br>{what}"]')
    for room, others in sorted(rooms.items()):
        implied = set().union(*(_below(rooms, other) for other in others)) if others else set()
        lines += [f"  {_id(room)} --> {_id(other)}" for other in sorted(others - implied)]
    lines += ["  training -.->|by name, through dnnlib families| models", "```"]
    return "\n".join(lines)


def _id(room: str) -> str:
    return room.replace(".", "_")


def _below(rooms: dict[str, set[str]], room: str) -> set[str]:
    """All rooms that are entered by way of one."""
    return rooms[room].union(*(_below(rooms, other) for other in rooms[room]))


def files() -> str:
    """Every file with what its docstring begins with, a table per folder."""
    parts: list[str] = []
    folders: dict[str, list[Path]] = {}
    for path in MODULES.values():
        folders.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
    for folder, paths in sorted(folders.items()):
        rows = [(f"`{path.name}`", summary(path)) for path in paths if path.stem != "__init__"]
        if rows:
            title = "front doors, and legacy.py" if folder == "." else f"{folder}/"
            parts += [f"**{title}**\n", table(("file", "what"), rows)]
    return "\n".join(parts).rstrip()


def architecture_page() -> str:
    """docs/architecture.md with its generated parts as the code is now."""
    text = (DOCS / "architecture.md").read_text()
    for name, part in {"floor plan": floor_plan(), "files": files()}.items():
        begin, end = f"<!-- {name}: written by docs/generate.py -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return text


def shown(value: Any) -> str:
    """Short text of a setting."""
    return f"{value:g}" if isinstance(value, float) else "-" if value is None else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "".join(f"| {line} |\n" for line in cells)


def main() -> None:
    """Write the pages, or with --check exit 1 where one is out of date."""
    for name, text in {"options": options_page(), "architecture": architecture_page()}.items():
        path = DOCS / f"{name}.md"
        if sys.argv[1:] != ["--check"]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"docs/{path.name} is out of date. Run `make docs` and commit the result.")


if __name__ == "__main__":
    main()
