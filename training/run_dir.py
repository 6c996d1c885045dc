"""Names and folders of runs."""

import contextlib
import errno
import logging
import os
import re
from pathlib import Path

from training.transfer_names import OFFICIAL_SNAPSHOTS


def describe_run(dataset_name, config, given):
    """Description of a run, as StyleGAN2-ADA names its folders.

    Args:
        dataset_name: Name of the data set.
        config: The `TrainingConfig`.
        given: Options the user gave, by field name; only those are named.
    """
    parts = [dataset_name]
    if config.cond:
        parts.append("cond")
    if config.subset is not None:
        parts.append(f"subset{config.subset}")
    if config.mirror:
        parts.append("mirror")
    parts.append(f"auto{config.gpus}" if config.cfg == "auto" else config.cfg)
    if "gamma" in given:
        parts.append(f"gamma{config.gamma:g}")
    parts += [f"{name}{given[name]}" for name in ("kimg", "batch") if name in given]
    if "aug" in given:
        parts.append(given["aug"])
    if config.resume is not None:
        known = config.resume in OFFICIAL_SNAPSHOTS
        parts.append(f"resume{config.resume if known else 'custom'}")
    if "freezed" in given:
        parts.append(f"freezed{config.freezed}")
    if config.coop_kimg:
        parts.append(f"coop{config.coop_kimg}")
    return "-".join(parts)


def create_run_dir(outdir, description):
    """Make and return `outdir/NNNNN-description`, NNNNN one above the highest there.

    Raises:
        OSError: The folder cannot be made or written.
    """
    outdir = Path(outdir)
    if outdir.is_file():  # mkdir() would say that it exists
        raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(outdir))
    outdir.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = [int(m[0]) for name in os.listdir(outdir) if (m := re.match(r"\d+", name))]
        run_dir = outdir / f"{max(numbers, default=-1) + 1:05d}-{description}"
        try:
            run_dir.mkdir()
        except FileExistsError:  # another run was faster
            continue
        return run_dir


@contextlib.contextmanager
def log_to(path):
    """Context in which everything that is logged, and the error that ends it, goes to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        handler.stream.write(f"{type(error).__name__}: {error}\n")
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
