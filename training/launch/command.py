"""What train.py does with its options: settings, data set, processes, and errors in one line.

Imports torch late, so that `train.py --help` answers at once.
"""

import contextlib
import dataclasses
import os
import shutil
from datetime import timedelta
from pathlib import Path

import click

from dnnlib.errors import OptionError
from training.settings.config import TrainingConfig
from training.settings.families import make_config
from training.settings.ranges import value_problems
from training.settings.setting import settings_of


@contextlib.contextmanager
def processes_started_together(given):
    """Context in which this process can talk to those that torchrun has started, if it has."""
    from torch.distributed import DistError

    from torch_utils import distributed
    from training.launch.session import show_messages

    if not distributed.under_torchrun():
        show_messages()
        yield
        return
    device = machine_settings(given)["device"]
    declared = settings_of(TrainingConfig)["timeout_minutes"]
    minutes = given.get("timeout_minutes", declared.default)
    for problem in value_problems(declared, minutes):
        raise click.UsageError(problem)
    with contextlib.ExitStack() as stack:
        try:
            joined = distributed.joined_by_torchrun(device, timedelta(minutes=minutes))
            stack.enter_context(joined)
        except (OSError, DistError) as error:
            raise click.ClickException(
                f"cannot meet the other processes: {last_line(error)}"
            ) from error
        show_messages(distributed.is_rank0())
        if given.setdefault("gpus", distributed.get_world_size()) != distributed.get_world_size():
            raise click.UsageError(
                f"--gpus={given['gpus']}, but torchrun started {distributed.get_world_size()} "
                "processes: leave it out"
            )
        if not distributed.is_rank0():
            stack.enter_context(silence())
        yield


@contextlib.contextmanager
def silence():
    """Context in which nothing is printed: the first process speaks for all."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def machine_settings(given):
    """`given` with the device that it asks for, or that there is, and values for all machines."""
    from torch_utils.devices import find_device
    from torch_utils.distributed import gpus_needed

    settings = {name: value for name, value in given.items() if name != "nobench"}
    if "data" in given:
        settings["data"] = os.path.abspath(given["data"])  # another folder may be the current one
    detector = given.get("detector")
    if detector is not None and Path(detector).exists():
        settings["detector"] = os.path.abspath(detector)
    try:
        gpus = gpus_needed(given.get("gpus", 1))
        settings["device"] = str(find_device(given.get("device"), gpus))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if "nobench" in given:
        settings["cudnn_benchmark"] = not given["nobench"]
    return settings


def open_dataset(given):
    """The data set of these settings, by field name."""
    from training.dataset import DatasetError, ImageFolderDataset

    if "data" not in given:
        raise click.UsageError("Missing option '--data': the zip or folder to train on")
    subset = given.get("subset")
    try:
        return ImageFolderDataset(
            given["data"],
            use_labels=given.get("cond", False),
            max_size=None if subset is None else max(subset, 1),  # refused later
            xflip=given.get("mirror", False),
            random_seed=given.get("seed", 0),
        )
    except DatasetError as error:
        raise click.ClickException(str(error)) from error


def configure(given):
    """Open the data set and complete the settings; returns (`TrainingConfig`, data set)."""
    given = {"cudnn_benchmark": True} | machine_settings(given)
    dataset = open_dataset(given)
    try:
        return make_config(given, dataset.resolution), dataset
    except OptionError as error:
        raise click.UsageError(str(error)) from error


def is_run(resume):
    """Whether this value of --resume means a run to go on with, and not weights to start from."""
    return resume == "latest" or (resume is not None and Path(resume).is_dir())


def reopen(outdir, given):
    """The run that --resume means: (folder, settings, data set, lines to print about it)."""
    from torch_utils import distributed
    from training.run.checkpoint import CheckpointError
    from training.run.resume import changed_settings, find_run, read_settings

    given = dict(given)
    try:
        resume = given.pop("resume")
        run_dir, lines = distributed.broadcast_from_rank0(
            lambda: find_run(outdir, resume, given.get("kimg"))
        )
        before = read_settings(run_dir)
        given = {"device": before.device, "gpus": before.gpus} | given
        config, changes = changed_settings(run_dir, machine_settings(given))
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    return run_dir, config, open_dataset(dataclasses.asdict(config)), [*lines, *changes]


def run(job):
    """Train in a run folder; errors that a user can mend end in one line."""
    from dnnlib.full_disk import FULL
    from torch_utils import distributed
    from torch_utils.spawn import WorkerError, run_processes
    from training.data.image_files import DatasetError
    from training.launch.session import train_job, train_spawned_job
    from training.monitor.diagnostics import SymptomError
    from training.monitor.divergence import DivergenceError
    from training.run.checkpoint import CheckpointError
    from training.run.consistency import ConsistencyError
    from training.run.run_dir import is_unused
    from training.transfer import TransferError

    expected = (
        TransferError,
        DatasetError,
        DivergenceError,
        SymptomError,
        CheckpointError,
        ConsistencyError,
        WorkerError,
        OSError,
    )
    config, run_dir = job.config, job.run_dir
    outcome = None
    spawn = config.gpus > 1 and distributed.get_world_size() == 1
    try:
        if spawn:
            job = job._replace(networks=None)  # cannot be pickled; each process reads them
            timeout = timedelta(minutes=config.timeout_minutes)
            outcome = run_processes(
                train_spawned_job, config.gpus, job, device=config.device, timeout=timeout
            )
        else:
            outcome = train_job(job)
    except expected as error:
        way_out = how_to_go_on(run_dir) if isinstance(error, DivergenceError) else ""
        if getattr(error, "errno", None) in FULL:
            way_out = f"; make room at '{run_dir.parent}' and give the same command again"
        refusal = click.ClickException(last_line(error) + way_out)
        if isinstance(error, WorkerError) and error.traceback:
            click.echo(error.traceback, err=True)
        refusal.exit_code = 3 if isinstance(error, SymptomError) else 1
        raise refusal from error
    finally:
        if outcome is None and distributed.is_rank0() and not job.resuming and is_unused(run_dir):
            shutil.rmtree(run_dir, ignore_errors=True)
    say_how_it_ended(outcome, run_dir)


def how_to_go_on(run_dir):
    """What may be done after a run has diverged: the same again would diverge again."""
    from training.run.checkpoint import find_checkpoints
    from training.snapshot import find_snapshots

    states, snapshots = find_checkpoints(run_dir), find_snapshots(run_dir)
    if not (states and snapshots):
        return ""
    kimg = int(snapshots[-1].stem.rpartition("-")[2])  # of the last good networks
    if states[0].nimg // 1000 > kimg:  # saved while it diverged
        return f"; --restart --resume={snapshots[-1]} starts from these with other settings"
    return f"; --resume={run_dir} goes on from kimg {states[0].nimg / 1e3:.1f} with other settings"


def say_how_it_ended(outcome, run_dir):
    """Print where to look, or what has been saved."""
    if outcome.done:
        click.echo(f"Done. Open {run_dir / 'index.html'}")
        return
    saved = outcome.saved_kimg
    click.echo(
        f"Stopped by {outcome.signal} at kimg {outcome.kimg:.1f}; "
        + ("nothing could be saved." if saved is None else
           f"the state of kimg {saved:.1f} is saved. The same command goes on from there.")
    )  # fmt: skip


def last_line(error):
    """The message itself: data-loader workers put their traceback and its class before it."""
    *_, line = str(error).strip().splitlines() or [type(error).__name__]
    return line.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
