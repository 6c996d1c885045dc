"""The rooms of the house, and which others each enters: read off the imports of the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "training", "metrics", "coopinit_patch", "torch_utils", "dnnlib")
DOORS = tuple(sorted(path.stem for path in ROOT.glob("*.py") if path.stem != "legacy"))
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
SOURCES += [ROOT / f"{name}.py" for name in (*DOORS, "legacy")]


def module_of(path: Path) -> str:
    """Dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in it, for types alone, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in MODULES else module


def room_of(module: str) -> str | None:
    """The room that a module lies in; None for what is not of this project.

    Everything at the top of training/ is "training".
    """
    first, _, rest = module.partition(".")
    inner = f"training.{rest.partition('.')[0]}"
    if first == "training" and rest and (ROOT / inner.replace(".", "/")).is_dir():
        return inner
    return first if first in (*PACKAGES, *DOORS, "legacy") else None


def entered() -> dict[str, set[str]]:
    """Of each room the others that it enters."""
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        room = room_of(module) or ""
        others = {room_of(name) for name in imports(path)} - {None, room}
        found.setdefault(room, set()).update(other for other in others if other is not None)
    return found


def summary(path: Path) -> str:
    """The first line of a file's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
