"""What docs/architecture.md promises about the whole tree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import train
from training.settings.families import config_classes
from training.settings.setting import settings_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "training", "metrics", "coopinit_patch", "torch_utils", "dnnlib")
DOORS = tuple(sorted(path.stem for path in ROOT.glob("*.py")))
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
SOURCES += [ROOT / f"{name}.py" for name in DOORS]
# Long lists of layers and of augmentations, an argument a line. Snapshots carry each whole: the
# files cannot be split.
BIG = {"networks.py", "augment.py"}

# What a package may import of this project. The front doors may import anything but each other.
MAY_IMPORT = {
    "models": {"models", "training", "coopinit_patch", "torch_utils", "dnnlib", "legacy"},
    # A snapshot to start from is read by the same code that the front doors use. Of models only the
    # list of families is known here.
    "training": {"models", "training", "coopinit_patch", "torch_utils", "dnnlib", "legacy"},
    # Training is told what to measure by train.py, and imports nothing of metrics.
    "metrics": {"metrics", "training", "torch_utils", "dnnlib", "legacy"},
    "coopinit_patch": {"coopinit_patch"},
    "torch_utils": {"torch_utils", "dnnlib"},
    "dnnlib": {"dnnlib"},
}
OFFICIAL_TOGETHER = {"dnnlib", "torch_utils"}


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(path):
    """Dotted names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module if node.level == 0 else path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path):
    found = {name.split(".")[0] for name in imports(path)} & {*PACKAGES, *DOORS}
    package = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT.get(package, {*PACKAGES, "legacy"})
    assert found <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_training_knows_no_family_by_name(path):
    if path.relative_to(ROOT).parts[0] == "training":
        assert not [name for name in imports(path) if name.startswith("models.")]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_dependencies_of_the_lower_rooms(path):
    package = path.relative_to(ROOT).parts[0]
    found = {name.split(".")[0] for name in imports(path)}
    foreign = found - set(sys.stdlib_module_names) - set(PACKAGES)
    if package == "coopinit_patch":
        assert foreign <= {"torch"}, "it can be copied into another trainer"
    if package == "dnnlib":
        assert "torch" not in foreign


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
