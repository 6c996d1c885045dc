"""Write the documents that are generated from code; `--check` compares instead.

    python docs/generate.py [--check]

docs/help/NAME.txt is the help text of each command.
"""

import importlib
import sys
from pathlib import Path

import click

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
COMMANDS = ("train", "generate", "dataset_tool")


def documents():
    """Text of every generated document, by its path."""
    for name in COMMANDS:
        command = importlib.import_module(name).main
        context = click.Context(command, info_name=f"python {name}.py", terminal_width=100)
        yield DOCS / "help" / f"{name}.txt", command.get_help(context) + "\n"


def main():
    """Write all documents, or with --check say which are out of date and exit 1."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for path, text in documents():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if check and stale:
        sys.exit(f"Out of date: {', '.join(stale)}. Run `make docs` and commit the result.")


if __name__ == "__main__":
    main()
