"""What docs/architecture.md promises about the whole tree."""

import ast
import graphlib
import subprocess
import sys

import pytest

import train
from docs.rooms import DOORS, MODULES, PACKAGES, ROOT, SOURCES, imports, module_of, room_of
from training.settings.family_settings import config_classes
from training.settings.setting import settings_of

# Long lists of layers and of augmentations, an argument a line. Snapshots carry each whole: the
# files cannot be split.
BIG = {"networks.py", "augment.py"}

# The rooms, and which others each may enter; everything at the top of training/ is "training". The
# front doors may enter all rooms.
BASE = {"dnnlib", "torch_utils"}
ROOMS = {
    "dnnlib": set(),
    "coopinit_patch": set(),
    "torch_utils": {"dnnlib"},
    "legacy": {"dnnlib", "torch_utils"},
    "training.settings": BASE,
    "training.data": {*BASE, "training.settings"},
    "training.monitor": {*BASE, "training.settings", "training.data"},
    "training.run": {*BASE, "legacy", "training.settings", "training.monitor"},
}
INNER = {room for room in ROOMS if room.startswith("training.")}
ROOMS["training"] = {*BASE, *INNER}
ROOMS["models"] = {*BASE, *INNER, "training", "coopinit_patch"}
ROOMS["training.launch"] = {*BASE, *INNER, "training"}
# Training is told what to measure by train.py, and enters no room of metrics.
ROOMS["metrics"] = {*BASE, *INNER, "training"}
OFFICIAL_TOGETHER = {"dnnlib", "torch_utils"}


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_rooms_are_entered_one_way(path):
    room = room_of(module_of(path))
    entered = {room_of(name) for name in imports(path)} - {None, room}
    assert entered <= (ROOMS[room] if room in ROOMS else ROOMS.keys())


def test_there_is_no_way_back():
    """Neither from room to room nor from file to file, however late or for types alone."""
    tuple(graphlib.TopologicalSorter(ROOMS).static_order())
    files = {module: set(imports(path)) - {module} for module, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(files).static_order())


def test_every_room_is_known():
    assert {room_of(module) for module in MODULES} == {*ROOMS, *DOORS}
    inside = {path.name for path in (ROOT / "training").iterdir() if path.is_file()}
    assert len(inside) <= 16, "the top of training/ is read from the top"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_dependencies_of_the_lower_rooms(path):
    package = path.relative_to(ROOT).parts[0]
    found = {name.split(".")[0] for name in imports(path)}
    foreign = found - set(sys.stdlib_module_names) - set(PACKAGES)
    if package == "coopinit_patch":
        assert foreign <= {"torch"}, "it can be copied into another trainer"
    if package == "dnnlib":
        assert "torch" not in foreign


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_one_border_for_what_the_user_can_mend(path):
    """Click is for the front doors, for the border itself, and for what options are made of."""
    doors = {*(f"{door}.py" for door in DOORS), "metrics/train_detector.py"}
    doors |= {"torch_utils/ops/__main__.py", "dnnlib/command.py", "training/settings/options.py"}
    if name_of(path) not in doors:
        assert "click" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("name", ["networks", "augment"])
def test_the_official_repo_can_load_what_snapshots_carry(name):
    path = ROOT / "training" / f"{name}.py"
    found = {module for module in imports(path) if module.split(".")[0] in {*PACKAGES, *DOORS}}
    assert {module.split(".")[0] for module in found} <= OFFICIAL_TOGETHER


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_length_of_files(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (850 if path.name in BIG else 400)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_length_of_functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.body[0].lineno < 60, node.name


@pytest.mark.parametrize(
    "door", ["train", "dataset_tool", "calc_metrics", "metrics.train_detector"]
)
def test_help_does_not_import_torch(door):
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['{door}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{door}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage:")
    loaded = set(done.stderr.split())
    assert "click" in loaded and not loaded & {"torch", "tensorboard", "matplotlib", "sklearn"}


# Options of train.py that are no settings of the run, or are kept as another setting.
NOT_SETTINGS = {
    "outdir",  # where
    "dry_run",  # whether at all
    "restart",  # whether anew
    "fp32",  # num_fp16_res
    "nobench",  # cudnn_benchmark
}


def test_an_option_is_a_setting():
    settings = {
        name
        for family in config_classes().values()
        for name, declared in settings_of(family).items()
        if declared.option
    }
    options = {parameter.name for parameter in train.main.params}
    assert options - settings == NOT_SETTINGS
    assert not NOT_SETTINGS & settings
    assert settings <= options


def test_every_option_is_documented():
    assert all(parameter.help for parameter in train.main.params)
