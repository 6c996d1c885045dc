"""Train StyleGAN2-ADA, optionally with a cooperative initialisation stage (CoopInit)."""

import dataclasses
from functools import partial
from typing import Any

import click

from dnnlib.command import SectionedCommand
from torch_utils.ops.backend import NativeUnavailableError, select
from training.launch.command import configure, is_run, processes_started_together, reopen, run
from training.run.run_dir import create_run_dir
from training.settings.common import GENERAL, PERFORMANCE
from training.settings.options import option_sections
from training.settings.run_name import describe_run
from training.settings.validation import remarks

# Options that are no settings of a run.
OTHERS = {
    GENERAL: [
        click.Option(
            ["--outdir"], default="training-runs", help="Folder of all runs", metavar="DIR"
        ),
        click.Option(["-n", "--dry-run"], is_flag=True, help="Print the settings and exit"),
        click.Option(
            ["--restart"],
            is_flag=True,
            help="Start a new run, even where one with the same settings is unfinished",
        ),
    ],
    PERFORMANCE: [
        click.Option(["--fp32"], type=bool, metavar="BOOL", help="The same as --precision=fp32"),
        click.Option(["--nobench"], type=bool, metavar="BOOL", help="No cuDNN benchmarking"),
    ],
}


@click.command(
    cls=SectionedCommand,
    sections=option_sections(OTHERS),
    context_settings={"show_default": True, "max_content_width": 100},
)
def main(outdir: str, dry_run: bool, restart: bool, **options: Any) -> None:
    """Train a GAN on the images of a zip or folder, made by dataset_tool.py.

    A command that is given again goes on with the newest unfinished run of the same settings.

    \b
    Examples:
      python train.py --data=cifar10.zip --cfg=cifar --coop-kimg=750 --gamma=0
      python train.py --data=faces.zip --mirror=1 --snap=10
      python train.py --resume=latest
    """
    given = {name: value for name, value in options.items() if value is not None}
    with processes_started_together(given):
        prepare_and_train(outdir, dry_run, restart, given)


def prepare_and_train(outdir, dry_run, restart, given):
    """Complete the settings, say what will be done, and do it."""
    from torch_utils import distributed
    from training.launch.session import Job

    asked = dict(given)
    same_command = not is_run(given.get("resume"))
    if restart and not same_command:
        raise click.UsageError("--restart starts a new run, --resume=RUN goes on with one")
    found = choose_run(outdir, restart, given) if same_command else reopen_run(outdir, given)
    run_dir, config, dataset, notes = found
    description = run_dir.name if run_dir else describe_run(dataset.name, config, asked)
    for line in [f"Settings: {config.to_json()}", f"Run: {description}", *notes]:
        click.echo(line)
    if run_dir:
        hint = "; --restart starts a new one" if same_command else ""
        click.echo(f"Going on with the unfinished run {run_dir}{hint}.")
    if dry_run:
        click.echo("Dry run: nothing was written.")
        return
    prepare_operators(config)  # a dry run builds nothing
    resuming = run_dir is not None
    networks = None if resuming else read_resume(config)  # nor does it download
    by_default = not {"metrics", "detector"} & asked.keys()
    spawns = config.gpus > 1 and distributed.get_world_size() == 1
    opened = distributed.run_on_rank0(lambda: open_metrics(config, by_default, spawns))
    possible, open_measure = opened or (config, None)
    if not resuming:
        config = possible  # of a run that goes on they may be possible again next time
        run_dir = distributed.broadcast_from_rank0(
            lambda: make_run_dir(outdir, description, config)
        )
    run(Job(config, dataset, run_dir, resuming, networks, open_measure))


def reopen_run(outdir, given):
    """The run that --resume means: (folder, settings, data set, lines to print)."""
    notes = choose_metrics(given) if "metrics" in given else []
    run_dir, config, dataset, lines = reopen(outdir, given)
    return run_dir, config, dataset, [*notes, *lines]


def choose_run(outdir, restart, given):
    """The run that the same command has left, or None for its folder; else as `reopen_run`."""
    from torch_utils import distributed
    from training.launch.launcher import job_name, started_again
    from training.run.resume import find_unfinished

    asked = dict(given)
    if "data" not in given and "resume" in given:
        raise click.UsageError(
            f"--resume={given['resume']} is no folder of a run; a snapshot to start from needs "
            "--data, too"
        )
    notes = choose_metrics(given)
    config, dataset = configure(given)
    run_dir, lines = None, []
    if not restart:
        run_dir, lines = distributed.broadcast_from_rank0(lambda: find_unfinished(outdir, config))
    elif started_again():
        own, _ = distributed.broadcast_from_rank0(
            lambda: find_unfinished(outdir, config, job_name())
        )
        run_dir, lines = own, ["This is not the first attempt: --restart was obeyed by that."]
    return run_dir, config, dataset, [*notes, *remarks(asked, config), *lines]


def choose_metrics(given):
    """Complete and check --metrics in `given`; returns lines to print."""
    from metrics import MetricError
    from metrics.registry import parse_metrics

    notes = []
    if "metrics" not in given:
        given["metrics"], notes = metrics_by_default(given)
        if given["metrics"] == "none":
            given.pop("detector", None)  # nothing to detect for
    try:
        names = [metric.name for metric in parse_metrics(given["metrics"])]
    except MetricError as error:
        raise click.UsageError(f"--metrics: {error}") from error
    given["metrics"] = ",".join(names) or "none"
    return notes


def metrics_by_default(given):
    """Metrics where the user names none, and lines to print about them."""
    from torch_utils.devices import find_device

    on_cpu = (given.get("device") or str(find_device())) == "cpu"
    if not on_cpu:
        return "fid50k_full", []
    return "none", [
        "Metrics are off: fid50k_full would take hours on the CPU. For numbers of a small detector "
        "of your own: python -m metrics.train_detector, then --detector=FILE --metrics=fid2k_full"
    ]


def open_metrics(config, by_default, spawns):
    """The settings, and a function that returns what measures the snapshots of a run.

    Metrics that were asked for must be possible before training starts; those that nobody asked
    for do not stand in its way: the settings that are returned then say that they are off. The
    function is None where nothing is measured.
    """
    from metrics import MetricError
    from metrics.evaluation import Settings
    from metrics.follow import RunMetrics

    if config.metrics in (None, "none"):
        return config, None
    settings = Settings(device=config.device, detector=config.detector, verbose=True)
    kwargs = config.training_set_kwargs()
    view = {name: kwargs[name] for name in ("max_size", "xflip", "random_seed") if name in kwargs}
    open_measure = partial(RunMetrics, config.metrics, data=config.data, **view)
    try:
        measure = open_measure(
            settings=dataclasses.replace(settings, device="cpu") if spawns else settings
        )
    except MetricError as error:
        if not by_default:
            raise click.ClickException(
                f"{error}; or leave metrics out by --metrics=none"
            ) from error
        click.echo(f"Metrics are off: {error}.")
        return dataclasses.replace(config, metrics="none"), None
    # Another process loads its own: detectors cannot be pickled.
    return config, partial(open_measure, settings=settings) if spawns else lambda: measure


def prepare_operators(config):
    """Build the native operators that the run will use, unless they are there."""
    try:
        select(config.ops, config.device.partition(":")[0])
    except NativeUnavailableError as error:
        raise click.ClickException(str(error)) from error


def read_resume(config):
    """The networks of --resume, or None."""
    from torch_utils import distributed
    from training.transfer import TransferError, read_snapshot

    if config.resume is None:
        return None
    try:
        return distributed.rank0_first(lambda: read_snapshot(config.resume))
    except TransferError as error:
        raise click.ClickException(str(error)) from error


def make_run_dir(outdir, description, config):
    """Make the folder of this run below `outdir`, with its settings in it."""
    from training.launch.launcher import job_name
    from training.run.resume import write_settings

    try:
        run_dir = create_run_dir(outdir, description, job_name())
        write_settings(run_dir, config)
        return run_dir
    except OSError as error:
        raise click.ClickException(
            f"Cannot make a run folder in --outdir={outdir}: {error.strerror}. Choose another one."
        ) from error


if __name__ == "__main__":
    main()
