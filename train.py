"""Train StyleGAN2-ADA, optionally with a cooperative initialisation stage (CoopInit)."""

import dataclasses
import logging
import shutil
import sys

import click

from dnnlib.command import SectionedCommand
from torch_utils.ops.backend import MODES, NativeUnavailableError, select
from training.augpipes import AUGPIPES
from training.config import ConfigError, TrainingConfig, setting_docs
from training.presets import CFG_NAMES
from training.run_dir import create_run_dir, describe_run, log_to
from training.validation import (
    ARCHITECTURES,
    AUGMENTATIONS,
    LOSSES,
    NOISE_SCHEDULES,
    PRECISIONS,
    remarks,
)

DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainingConfig)}
DOCS = setting_docs()


class FloatOrLiteral(click.ParamType):
    """A number, or the word "literal"."""

    name = "float|literal"

    def convert(self, value, param, ctx):
        """Convert the text of the command line."""
        if value == "literal":
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'literal'.", param, ctx)


def snapshot_or_none(ctx, param, value):
    """`noresume` is how scripts for the official train.py spell the default of --resume."""
    return None if value == "noresume" else value


def names(ctx, param, value):
    """A comma-separated list as a tuple."""
    return None if value is None else tuple(n.strip() for n in value.split(",") if n.strip())


def option(name, default="from --cfg", **kwargs):
    """One setting of `TrainingConfig`: its help text and default come from there.

    `default` describes what holds where the field has no default of its own.
    """
    field = name.lstrip("-").replace("-", "_")
    doc, _, without = DOCS[field].partition("; None: ")
    if DEFAULTS[field] is not dataclasses.MISSING:
        default = without if DEFAULTS[field] in (None, ()) else DEFAULTS[field]
    shown = "" if not str(default) or kwargs.get("required") else f"  [default: {default}]"
    return click.Option([name], help=doc[0].upper() + doc[1:] + shown, **kwargs)


OPTIONS = {
    "General": [
        click.Option(
            ["--outdir"], default="training-runs", help="Folder of all runs", metavar="DIR"
        ),
        click.Option(["-n", "--dry-run"], is_flag=True, help="Print the settings and exit"),
        click.Option(["--device"], help="cpu, cuda or cuda:N  [default: cuda where there is one]"),
        option("--gpus", type=int),
        option("--snap", type=int),
        option("--seed", type=int),
        option("--stop-on", callback=names, metavar="LIST"),
        option("--metrics", metavar="LIST"),
        option("--detector", metavar="PT"),
        option("--keep", type=int),
    ],
    "Data": [
        option("--data", required=True, metavar="PATH"),
        option("--cond", type=bool, metavar="BOOL"),
        option("--subset", type=int),
        option("--mirror", type=bool, metavar="BOOL"),
        option("--workers", type=int),
    ],
    "Preset, and what it sets": [
        option("--cfg", type=click.Choice(CFG_NAMES)),
        option("--gamma", type=float),
        option("--kimg", type=int),
        option("--batch", type=int),
    ],
    "Networks": [
        option("--mapping-layers", type=int),
        option("--g-arch", type=click.Choice(ARCHITECTURES)),
        option("--d-arch", type=click.Choice(ARCHITECTURES)),
        option("--g-scale", type=float),
        option("--d-scale", type=float),
        option("--channel-max", type=int),
        option("--sn", type=bool, metavar="BOOL"),
    ],
    "Augmentation": [
        option(
            "--aug",
            type=click.Choice(AUGMENTATIONS),
            default="ada with --loss=ns and R1, else noaug",
        ),
        option("--p", type=float),
        option("--target", type=float),
        option("--augpipe", type=click.Choice(list(AUGPIPES))),
    ],
    "Loss and regularisation": [
        option("--loss", type=click.Choice(LOSSES)),
        option("--gp-weight", type=float),
        option("--lazy", type=bool, metavar="BOOL"),
        option("--pl-weight", type=float),
        option("--style-mixing", type=float),
        option("--zcr", type=bool, metavar="BOOL"),
        option("--zcr-g", type=float),
        option("--zcr-d", type=float),
        option("--zcr-noise", type=float),
        option("--brc", type=bool, metavar="BOOL"),
        option("--brc-lookahead", type=int),
        option("--brc-limit", type=float),
    ],
    "Learning rates": [
        option("--lr", type=float),
        option("--lr-g", type=float),
        option("--lr-d", type=float),
    ],
    "Transfer learning": [
        option("--resume", metavar="PKL", callback=snapshot_or_none),
        option("--freezed", type=int),
    ],
    "Performance": [
        option(
            "--precision", type=click.Choice(PRECISIONS), default="fp16 on CUDA, fp32 on the CPU"
        ),
        click.Option(["--fp32"], type=bool, metavar="BOOL", help="The same as --precision=fp32"),
        option("--nhwc", type=bool, metavar="BOOL"),
        click.Option(["--nobench"], type=bool, metavar="BOOL", help="No cuDNN benchmarking"),
        option("--allow-tf32", type=bool, metavar="BOOL"),
        option("--ops", type=click.Choice(MODES)),
    ],
    "Cooperative initialisation (CoopInit)": [
        option("--coop-kimg", type=int),
        option("--coop-steps", type=int),
        option("--coop-step-size", type=float),
        option("--coop-noise", type=FloatOrLiteral(), metavar="FLOAT|literal"),
        option("--coop-noise-schedule", type=click.Choice(NOISE_SCHEDULES)),
        option("--coop-step-clip", type=float),
        option("--coop-clamp", type=float),
        option("--coop-energy-l2", type=float),
        option("--coop-lr-g", type=float),
        option("--coop-lr-d", type=float),
    ],
}


@click.command(
    cls=SectionedCommand,
    sections=OPTIONS,
    context_settings={"show_default": True, "max_content_width": 100},
)
def main(outdir, dry_run, **options):
    """Train a GAN on the images of a zip or folder, made by dataset_tool.py.

    \b
    Examples:
      python train.py --data=cifar10.zip --cfg=cifar --coop-kimg=750 --gamma=0
      python train.py --data=faces.zip --mirror=1 --snap=10
    """
    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    for name in ("training", "metrics"):
        logging.getLogger(name).setLevel(logging.INFO)
    given = {name: value for name, value in options.items() if value is not None}
    asked = dict(given)
    refuse_unavailable(given)
    notes = choose_metrics(given)
    config, dataset = configure(given)
    description = describe_run(dataset.name, config, asked)
    notes += remarks(asked, config)
    for line in [f"Settings: {config.to_json()}", f"Run: {description}", *notes]:
        click.echo(line)
    if dry_run:
        click.echo("Dry run: nothing was written.")
        return
    prepare_operators(config)  # a dry run builds nothing
    resume = read_resume(config)  # nor does it download
    by_default = not {"metrics", "detector"} & asked.keys()
    config, measure = open_metrics(config, by_default)
    run(config, dataset, make_run_dir(outdir, description), resume, measure)


def refuse_unavailable(given):
    """Refuse options that no code stands behind yet."""
    if given.get("gpus", 1) > 1:
        raise click.UsageError("not available yet: --gpus above 1; leave it out")


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


def open_metrics(config, by_default):
    """What measures the snapshots of a run, or None, and the settings, changed where it is off.

    Metrics that were asked for must be possible before training starts; those that nobody asked
    for do not stand in its way.
    """
    from metrics import MetricError
    from metrics.evaluation import Settings
    from metrics.follow import RunMetrics

    if config.metrics in (None, "none"):
        return config, None
    settings = Settings(device=config.device, detector=config.detector, verbose=True)
    kwargs = config.training_set_kwargs()
    view = {name: kwargs[name] for name in ("max_size", "xflip", "random_seed") if name in kwargs}
    try:
        return config, RunMetrics(config.metrics, settings, config.data, **view)
    except MetricError as error:
        if not by_default:
            raise click.ClickException(
                f"{error}; or leave metrics out by --metrics=none"
            ) from error
        click.echo(f"Metrics are off: {error}.")
        return dataclasses.replace(config, metrics="none"), None


def machine_settings(given):
    """`given` with the device that it asks for, or that there is, and the field of --nobench."""
    from torch_utils.devices import find_device

    settings = {name: value for name, value in given.items() if name != "nobench"}
    try:
        settings["device"] = str(find_device(given.get("device")))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return settings | {"cudnn_benchmark": not given.get("nobench", False)}


def configure(given):
    """Open the data set and complete the settings; returns (`TrainingConfig`, data set)."""
    from training.dataset import DatasetError, ImageFolderDataset

    given = machine_settings(given)
    try:
        dataset = ImageFolderDataset(
            given["data"],
            use_labels=given.get("cond", False),
            max_size=max(given["subset"], 1) if "subset" in given else None,  # refused below
            xflip=given.get("mirror", False),
            random_seed=given.get("seed", 0),
        )
    except DatasetError as error:
        raise click.ClickException(str(error)) from error
    try:
        return TrainingConfig.from_options(given, resolution=dataset.resolution), dataset
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def prepare_operators(config):
    """Build the native operators that the run will use, unless they are there."""
    try:
        select(config.ops, config.device.partition(":")[0])
    except NativeUnavailableError as error:
        raise click.ClickException(str(error)) from error


def read_resume(config):
    """The networks of --resume, or None."""
    from training.transfer import TransferError, read_snapshot

    try:
        return None if config.resume is None else read_snapshot(config.resume)
    except TransferError as error:
        raise click.ClickException(str(error)) from error


def run(config, dataset, run_dir, resume, measure):
    """Train in a fresh run folder; errors that a user can mend end in one line."""
    from training.diagnostics import SymptomError
    from training.divergence import DivergenceError
    from training.image_files import DatasetError
    from training.training_loop import TrainingRun
    from training.transfer import TransferError

    training = None
    try:
        with log_to(run_dir / "log.txt"):
            training = TrainingRun(config, dataset, run_dir, resume, measure)
            click.echo(f"Run folder: {run_dir}")
            (run_dir / "training_options.json").write_text(config.to_json())
            training.train()
    except (TransferError, DatasetError, DivergenceError, SymptomError, OSError) as error:
        refusal = click.ClickException(last_line(error))
        refusal.exit_code = 3 if isinstance(error, SymptomError) else 1
        raise refusal from error
    finally:
        if training is None:  # the folder holds at most a log of what is said to the user, too
            shutil.rmtree(run_dir, ignore_errors=True)
    click.echo(f"Done. Open {run_dir / 'index.html'}")


def make_run_dir(outdir, description):
    """Make the folder of this run below `outdir`."""
    try:
        return create_run_dir(outdir, description)
    except OSError as error:
        raise click.ClickException(
            f"Cannot make a run folder in --outdir={outdir}: {error.strerror}. Choose another one."
        ) from error


def last_line(error):
    """The message itself: data-loader workers put their traceback and its class before it."""
    *_, line = str(error).strip().splitlines() or [type(error).__name__]
    return line.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")


if __name__ == "__main__":
    main()
