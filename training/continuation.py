"""Which run a command goes on with, and its folder as it was when the state was saved."""

import contextlib
import os
import re
from pathlib import Path

from training.checkpoint import StateError, find_states, read_newest_state
from training.config import ConfigError, TrainingConfig
from training.run_dir import is_locked

# Files that a run appends to.
JOURNALS = ("stats.jsonl", "log.txt", "metric-*.jsonl", "events.out.tfevents.*")


def read_settings(run_dir):
    """The `TrainingConfig` of a run folder.

    Raises:
        StateError: There is none that this version reads.
    """
    path = Path(run_dir) / "training_options.json"
    try:
        return TrainingConfig.from_json(path.read_text())
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = error.strerror if isinstance(error, OSError) else "not of this version"
        raise StateError(f"Cannot read '{path}': {problem}.") from error


def find_unfinished(outdir, config):
    """The newest run below `outdir` that has the same settings and images left to see, or None."""
    for run_dir in _runs(outdir):
        states = find_states(run_dir)
        if not states or states[0].nimg >= config.kimg * 1000:
            continue
        with contextlib.suppress(StateError):
            if config.same_run(read_settings(run_dir)) and not is_locked(run_dir):
                return run_dir
    return None


def find_run(outdir, resume):
    """The folder that --resume=latest or --resume=RUN_DIR means.

    Raises:
        StateError: There is no such run, or it holds no state.
    """
    if resume != "latest":
        if not find_states(resume):
            raise StateError(f"--resume={resume}: this folder holds no training state.")
        return Path(resume)
    for run_dir in _runs(outdir):
        if find_states(run_dir):
            return run_dir
    raise StateError(f"--resume=latest: no run in --outdir={outdir} holds a training state.")


def _runs(outdir):
    """Run folders below `outdir`, the newest first."""
    outdir = Path(outdir)
    names = os.listdir(outdir) if outdir.is_dir() else []
    numbered = [(int(m[0]), name) for name in names if (m := re.match(r"\d+(?=-)", name))]
    return [outdir / name for _, name in sorted(numbered, reverse=True)]


def changed_settings(run_dir, given):
    """The settings of a run with those that are `given` (by field name) in their place.

    Returns:
        (`TrainingConfig`, lines about what has changed).

    Raises:
        StateError, ConfigError: The settings cannot be read, or not be as asked for.
    """
    before = read_settings(run_dir)
    after = before.changed(given)
    lines = [
        f"{name}: {old} -> {getattr(after, name)}"
        for name, old in vars(before).items()
        if getattr(after, name) != old
    ]
    if fixed := before.fixed_differences(after):
        raise ConfigError(
            f"a run cannot go on with another {', '.join(fixed)}: leave it out, or start a new run"
        )
    return after, lines


def journal_sizes(run_dir):
    """Length in bytes of every file that the run appends to, by name."""
    run_dir = Path(run_dir)
    return {path.name: path.stat().st_size for glob in JOURNALS for path in run_dir.glob(glob)}


def cut_journals(run_dir, sizes):
    """Take away what was appended after `journal_sizes` was called."""
    for name in journal_sizes(run_dir):
        path = Path(run_dir) / name
        if name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[name]:
            os.truncate(path, sizes[name])


def take_up(run_dir, config):
    """Read the newest state of a run and put its journals back to that moment.

    Returns:
        (path, content) of the state.

    Raises:
        StateError: There is none that can be used, or the run has seen all its images.
    """
    path, content = read_newest_state(run_dir)
    nimg = content["parts"]["training"]["nimg"]
    if nimg >= config.kimg * 1000:
        raise StateError(
            f"'{run_dir}' is finished at kimg {nimg / 1e3:.1f}; give a larger --kimg to go on"
        )
    cut_journals(run_dir, content["journals"])
    return path, content
