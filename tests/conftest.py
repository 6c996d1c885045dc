"""Operators in tests: plain PyTorch, unless a test asks for the native ones."""

import os

import pytest


def pytest_configure(config):
    # Libraries that tests build are kept with pytest's cache: for the next run, not for the user.
    kept = config.pluginmanager.hasplugin("cacheprovider")
    if kept and not os.environ.get("TORCH_EXTENSIONS_DIR"):
        os.environ["TORCH_EXTENSIONS_DIR"] = str(config.cache.mkdir("ops"))


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def plain_operators():
    """Results must not depend on whether there is a compiler."""
    from torch_utils.ops import backend  # late: where workers test, their parent needs no torch

    backend.select("ref")
    yield
    backend.select("ref")


@pytest.fixture
def no_curves(monkeypatch):
    """Runs draw no learning curves; see `tests.train_cli.without_curves`."""
    monkeypatch.setattr("training.monitor.page.save_curves", lambda run_dir: None)


@pytest.fixture
def native():
    """Native operators on the CPU; skips where there is no compiler, and there alone."""
    from torch_utils.ops import backend
    from torch_utils.ops.native import build, library, toolchain

    if problems := toolchain.find("cpu").problems:
        pytest.skip("; ".join(problems))
    build.library("cpu", retry=True)
    assert library.load("cpu") is None
    backend.select("native", "cpu")
