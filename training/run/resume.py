"""Which run a command resumes, and its folder as it was when the checkpoint was saved."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dnnlib.errors import OptionError
from dnnlib.util import atomic_write
from training.monitor.metric_records import MEASUREMENTS, forget_measurements, metric_of
from training.run.checkpoint_file import (
    CheckpointError,
    find_checkpoints,
    is_whole,
    read_newest_checkpoint,
)
from training.run.run_dir import job_of
from training.settings.config import TrainingConfig, config_from_json

# Files of numbers that a run appends to; log.txt keeps what was said, of lost iterations, too.
JOURNALS = ("stats.jsonl", "events.out.tfevents.*", MEASUREMENTS)
FEW_DIFFERENCES = 3  # settings, up to which another run may have been meant


def read_settings(run_dir: str | os.PathLike) -> TrainingConfig:
    """The `TrainingConfig` of a run folder.

    Raises:
        CheckpointError: There is none that this version reads.
    """
    path = Path(run_dir) / "training_options.json"
    try:
        return config_from_json(path.read_text())
    except (OSError, OptionError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = "it is damaged, or not of this version"
        if isinstance(error, OSError):
            problem = str(error.strerror)
        raise CheckpointError(f"Cannot read '{path}': {problem}.") from error


def write_settings(run_dir: str | os.PathLike, config: TrainingConfig) -> None:
    """Write the settings of a run, whole or not at all, unless they are there.

    Raises:
        OSError: They cannot be written.
    """
    path, text = Path(run_dir) / "training_options.json", config.to_json()
    if not path.exists() or path.read_text() != text:
        with atomic_write(path) as file:
            file.write(text.encode())


def find_unfinished(
    outdir: str | os.PathLike, config: TrainingConfig, job: str = ""
) -> tuple[Path | None, list[str]]:
    """The newest run below `outdir` that has the same settings and images left to see.

    Args:
        outdir: Folder of all runs.
        config: The `TrainingConfig`.
        job: Only a run that an earlier attempt of this one has started is meant
            (`attempts.job_name`); "": any.

    Returns:
        (its folder or None, lines about runs that might have been meant).
    """
    lines: list[str] = []
    for run_dir, settings in _list_runs(outdir, lines):
        differences = config.differences(settings)
        if not find_checkpoints(run_dir) or (job and job_of(run_dir) != job):
            continue
        if is_finished(run_dir, settings.kimg, read=not differences):
            continue
        if not differences:
            return run_dir, changes(settings, config)
        if len(differences) <= FEW_DIFFERENCES:
            lines.append(
                f"{run_dir.name} is unfinished, too, but differs in {', '.join(differences)}; "
                f"--resume={run_dir} resumes it."
            )
    return None, lines


def is_finished(run_dir: str | os.PathLike, kimg: int, read: bool = True) -> bool:
    """Whether a run has seen all its images, by its newest checkpoint, which is whole.

    Args:
        run_dir: The run folder, with at least one checkpoint.
        kimg: Length of the run.
        read: Read the checkpoint; else its name is believed.
    """
    newest = find_checkpoints(run_dir)[0]
    if newest.nimg < kimg * 1000 or not read:
        return newest.nimg >= kimg * 1000
    with contextlib.suppress(OSError):  # reading it later says why
        return is_whole(newest.path)
    return False


def find_run(
    outdir: str | os.PathLike, resume: str, kimg: int | None = None
) -> tuple[Path, list[str]]:
    """The run that --resume=latest or --resume=RUN_DIR means.

    Args:
        outdir: Folder of all runs.
        resume: Value of the option.
        kimg: What the run is to be continued to; None: as its settings say.

    Returns:
        (its folder, lines about newer ones that cannot be used).

    Raises:
        CheckpointError: There is no such run, or it holds no checkpoint.
    """
    if resume != "latest":
        if not find_checkpoints(resume):
            raise CheckpointError(
                f"--resume={resume}: this folder holds no checkpoint; give the folder of a run "
                "(training-runs/00000-...), or latest"
            )
        return Path(os.path.abspath(resume)), []
    finished = False
    lines: list[str] = []
    for run_dir, settings in _list_runs(outdir, lines):
        if find_checkpoints(run_dir):
            if not is_finished(run_dir, kimg or settings.kimg):
                return run_dir, lines
            finished = True
    if finished:
        raise CheckpointError(
            f"--resume=latest: all runs in --outdir={outdir} are finished; give a larger --kimg to "
            f"resume the newest. {' '.join(lines)}".strip()
        )
    raise CheckpointError(
        " ".join([f"--resume=latest: no run in --outdir={outdir} can be resumed.", *lines])
    )


def _list_runs(
    outdir: str | os.PathLike, lines: list[str]
) -> Iterator[tuple[Path, TrainingConfig]]:
    """(folder, settings) of each run below `outdir`, the newest first.

    To `lines` one is added about each that holds checkpoints, but settings that cannot be read.
    """
    outdir = Path(outdir)
    names = os.listdir(outdir) if outdir.is_dir() else []
    numbered = [(int(m[0]), name) for name in names if (m := re.match(r"\d+(?=-)", name))]
    for _, name in sorted(numbered, reverse=True):
        try:
            yield outdir / name, read_settings(outdir / name)
        except CheckpointError as error:
            if find_checkpoints(outdir / name):
                lines.append(f"{name} is left alone: {error}")


def changed_settings(
    run_dir: str | os.PathLike, given: Mapping[str, Any]
) -> tuple[TrainingConfig, list[str]]:
    """The settings of a run with those that are `given` (by field name) in their place.

    Returns:
        (`TrainingConfig`, lines about what has changed).

    Raises:
        CheckpointError, OptionError: The settings cannot be read, or not be as asked for.
    """
    before = read_settings(run_dir)
    after = before.changed(given)
    if is_finished(run_dir, after.kimg):
        raise _finished_error(run_dir, find_checkpoints(run_dir)[0].nimg)
    if fixed := before.fixed_differences(after):
        raise OptionError(
            f"a run cannot be resumed with another {', '.join(fixed)}: leave it out, or start a "
            "new run"
        )
    return after, changes(before, after)


def _finished_error(run_dir: str | os.PathLike, nimg: int) -> CheckpointError:
    return CheckpointError(
        f"'{run_dir}' is finished at kimg {nimg / 1e3:.1f}; give a larger --kimg to continue"
    )


def changes(before: TrainingConfig, after: TrainingConfig) -> list[str]:
    """Lines `NAME: OLD -> NEW` about the settings that differ."""
    return [
        f"{name}: {old} -> {getattr(after, name)}"
        for name, old in vars(before).items()
        if getattr(after, name) != old
    ]


def journal_sizes(run_dir: str | os.PathLike) -> dict[str, int]:
    """Length in bytes of every file that the run appends to, by name."""
    run_dir = Path(run_dir)
    return {path.name: path.stat().st_size for glob in JOURNALS for path in run_dir.glob(glob)}


def truncate_journals(
    run_dir: str | os.PathLike,
    sizes: Mapping[str, int],
    nimg: int,
    pending_evaluation: str | None = None,
    metrics: Collection[str] = (),
) -> None:
    """Take away what a run has appended since `journal_sizes` was called.

    Args:
        run_dir: The run folder.
        sizes: What that has returned.
        nimg: Images seen then.
        pending_evaluation: Name of a snapshot that had still to be measured, or None.
        metrics: By what.
    """
    for name in journal_sizes(run_dir):
        path = Path(run_dir) / name
        if path.match(MEASUREMENTS):
            again = pending_evaluation if metric_of(path) in metrics else None
            forget_measurements(path, sizes.get(name, 0), nimg // 1000, again)
        elif name not in sizes:
            path.unlink()
        elif path.stat().st_size > sizes[name]:
            os.truncate(path, sizes[name])


def _check_content(path: Path, content: Mapping[str, Any]) -> None:
    """Check that a checkpoint holds what the loop has put into it.

    Raises:
        CheckpointError: It holds something else.
    """
    kinds: dict[str, type] = dict(parts=dict, random=list, journals=dict, dataset=str)
    sound = all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    training = content["parts"].get("training") if sound else None
    sizes = content["journals"].values() if sound else ()
    if not (
        isinstance(training, dict)
        and isinstance(training.get("progress"), dict)
        and isinstance(training["progress"].get("nimg"), int)
        and all(isinstance(size, int) and size >= 0 for size in sizes)
        and isinstance(content["parts"].get("snapshots"), dict)
    ):
        raise CheckpointError(f"'{path}' is no checkpoint of this version; --restart starts over")


def restore(
    run_dir: str | os.PathLike, config: TrainingConfig, dataset: Any
) -> tuple[Path, dict[str, Any]]:
    """Read the newest checkpoint of a run and cut its journals back to that moment.

    Args:
        run_dir: The run folder.
        config: Its `TrainingConfig`.
        dataset: The opened `ImageFolderDataset`.

    Returns:
        (path, content) of the checkpoint.

    Raises:
        CheckpointError: There is none that can be used, the run has seen all its images, or the
            data are not those that it has trained on.
    """
    path, content = read_newest_checkpoint(run_dir)
    _check_content(path, content)
    nimg = content["parts"]["training"]["progress"]["nimg"]
    pending = content["parts"]["snapshots"].get("pending_evaluation")
    if nimg >= config.kimg * 1000:
        raise _finished_error(run_dir, nimg)
    if content["dataset"] != dataset.signature:
        raise CheckpointError(
            f"the data in '{config.data}' have changed since '{run_dir}' was trained on them; put "
            "them back, or start a new run with --restart, from its newest network-snapshot-*.pkl "
            "with --resume"
        )
    metrics = (config.metrics or "").split(",")
    truncate_journals(run_dir, content["journals"], nimg, pending, metrics)
    return path, content
