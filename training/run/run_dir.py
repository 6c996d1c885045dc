"""Names and folders of runs."""

import contextlib
import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dnnlib.full_disk import LogFile
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS

try:
    import fcntl
except ImportError:  # Windows: two processes in one run folder are not noticed there
    fcntl = None

JOB = ".job"
PATIENCE = 60  # seconds: one that was asked to stop saves, those it has spawned outlive it a little

logger = logging.getLogger(__name__)

# Options of ours that a description names when they are given, in this order.
NAMED = (
    "gp_weight", "lr", "lr_g", "lr_d", "g_arch", "d_arch", "g_scale", "d_scale", "channel_max",
    "mapping_layers", "lazy", "pl_weight", "style_mixing", "sn", "zcr", "zcr_g", "zcr_d",
    "zcr_noise", "brc", "brc_lookahead", "brc_limit", "precision", "coop_steps", "coop_step_size",
    "coop_noise", "coop_noise_schedule", "coop_step_clip", "coop_clamp", "coop_energy_l2",
    "coop_lr_g", "coop_lr_d",
)  # fmt: skip


def describe_run(dataset_name, config, given):
    """Description of a run, as StyleGAN2-ADA names its folders.

    Args:
        dataset_name: Name of the data set.
        config: The `TrainingConfig`.
        given: Options the user gave, by field name; only those are named.
    """
    resume = config.resume if config.resume in OFFICIAL_SNAPSHOTS else "custom"
    cfg = f"auto{config.gpus}" if config.cfg == "auto" else config.cfg
    parts = [  # (text, whether it is named), in the official order; ours at the end
        (dataset_name, True),
        ("cond", config.cond),
        (f"subset{config.subset}", config.subset is not None),
        ("mirror", config.mirror),
        (cfg, True),
        (f"gamma{config.gamma:g}", "gamma" in given),
        (f"kimg{config.kimg}", "kimg" in given),
        (f"batch{config.batch}", "batch" in given),
        (config.aug, "aug" in given),
        (f"p{config.p}", "p" in given),
        (f"target{config.target:g}", "target" in given),
        (config.augpipe, "augpipe" in given),
        (f"resume{resume}", config.resume is not None),
        (f"freezed{config.freezed}", "freezed" in given),
        (f"coop{config.coop_kimg}", config.coop_kimg > 0 and "coop_kimg" in given),
        (config.loss, "loss" in given),
        *((_short(name, getattr(config, name)), name in given) for name in NAMED),
    ]
    return "-".join(text for text, named in parts if named)


def _short(name, value):
    """`dscale0.25`, `sn`, `nolazy`: a setting as a part of a folder's name."""
    name = name.replace("_", "")
    if isinstance(value, bool):
        return name if value else f"no{name}"
    return f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"


def create_run_dir(outdir: str | os.PathLike, description: str, job: str = "") -> Path:
    """Make and return `outdir/NNNNN-description`, NNNNN one above the highest there.

    Args:
        outdir: Folder of all runs.
        description: End of the name.
        job: Name of the attempts of a process manager that the run is of (`launcher.job_name`).

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
        if job:
            (run_dir / JOB).write_text(job)
        return run_dir


def job_of(run_dir: str | os.PathLike) -> str:
    """The `job` that `create_run_dir` was given."""
    path = Path(run_dir) / JOB
    return path.read_text() if path.exists() else ""


def is_unused(run_dir: str | os.PathLike) -> bool:
    """Whether nothing was made of a run except its folder, its settings and its log."""
    made = ("*.png", "*.pkl", "checkpoint-*.pt")
    return not any(path for pattern in made for path in Path(run_dir).glob(pattern))


@contextlib.contextmanager
def lock_run(run_dir: str | os.PathLike) -> Iterator[None]:
    """Context that no second process enters for the same run folder.

    One that is ending is waited for. The lock goes with the process, however that ends; workers do
    not inherit it. Where the file system has no locks, a warning says so.

    Raises:
        BlockingIOError: Another process stays in it.
        OSError: The folder cannot be written into.
    """
    end = time.monotonic() + PATIENCE
    with open(Path(run_dir) / ".lock", "ab") as file:
        waiting = False
        while not _lock(file, run_dir):
            if time.monotonic() >= end:
                raise BlockingIOError(
                    f"Another process is training in '{run_dir}'; --restart starts a new run"
                )
            if not waiting:
                logger.info("Waiting for another process that is training in '%s'.", run_dir)
            waiting = True
            time.sleep(0.2)
        yield


def _lock(file: IO[bytes], run_dir: str | os.PathLike) -> bool:
    """Take the lock; returns whether no other process has it."""
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning(
            "Warning: '%s' cannot be locked (%s): give this command only once at a time.",
            run_dir,
            error.strerror,
        )
    return True


@contextlib.contextmanager
def log_to(path: str | os.PathLike) -> Iterator[None]:
    """Context in which everything that is logged, and the error that ends it, goes to a file."""
    handler = LogFile(path, encoding="utf-8")
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk is full
            assert handler.stream is not None, "it is opened at once"
            handler.stream.write(f"{type(error).__name__}: {error}\n")
            handler.flush()
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
