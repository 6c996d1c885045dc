"""Train StyleGAN2-ADA, optionally with a cooperative initialisation stage (CoopInit)."""

import dataclasses
from functools import partial

import click

from dnnlib.command import SectionedCommand
from dnnlib.errors import OptionError, UserError
from torch_utils.ops.backend import MODES
from training.settings.augpipes import AUGPIPES
from training.settings.config import TrainingConfig, setting_docs
from training.settings.presets import CFG_NAMES
from training.settings.validation import (
    ARCHITECTURES,
    AUGMENTATIONS,
    LOSSES,
    NOISE_SCHEDULES,
    ON_DIVERGENCE,
    PRECISIONS,
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
        click.Option(
            ["--restart"],
            is_flag=True,
            help="Start a new run, even where one with the same settings is unfinished",
        ),
        click.Option(["--device"], help="cpu, cuda or cuda:N  [default: cuda where there is one]"),
        option("--gpus", type=int),
        option("--timeout-minutes", type=float),
        option("--snap", type=int),
        option("--save-minutes", type=float),
        option("--seed", type=int),
        option("--on-divergence", type=click.Choice(ON_DIVERGENCE)),
        option("--stop-on", callback=names, metavar="LIST"),
        option("--metrics", metavar="LIST"),
        option("--detector", metavar="PT"),
        option("--keep", type=int),
    ],
    "Data": [
        option("--data", default="needed for a new run", metavar="PATH"),
        option("--cond", type=bool, metavar="BOOL"),
        option("--subset", type=int),
        option("--mirror", type=bool, metavar="BOOL"),
        option("--workers", type=int),
        option("--cache", type=bool, metavar="BOOL"),
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
        option("--resume", metavar="PKL|RUN_DIR|latest", callback=snapshot_or_none),
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
def main(outdir, dry_run, restart, **options):
    """Train a GAN on the images of a zip or folder, made by dataset_tool.py.

    A command that is given again resumes the newest unfinished run of the same settings.

    \b
    Examples:
      python train.py --data=cifar10.zip --cfg=cifar --coop-kimg=750 --gamma=0
      python train.py --data=faces.zip --mirror=1 --snap=10
      python train.py --resume=latest
    """
    from torch_utils import distributed
    from training.launch.launch import launch
    from training.launch.plan import make_plan, names_run
    from training.launch.processes import started_together

    given = {name: value for name, value in options.items() if value is not None}
    by_default = not {"metrics", "detector"} & given.keys()
    with started_together(given):
        lines = []
        if "metrics" in given or not names_run(given.get("resume")):
            lines = choose_metrics(given)
        plan = make_plan(given, outdir, restart)
        settings = [f"Settings: {plan.config.to_json()}", f"Run: {plan.description}"]
        for line in [*settings, *lines, *plan.notes]:
            click.echo(line)
        if dry_run:
            click.echo("Dry run: nothing was written.")
            return
        opened = distributed.run_on_rank0(lambda: open_metrics(plan, by_default))
        plan, open_evaluate = opened or (plan, None)
        say_how_it_ended(launch(plan, open_evaluate))


def choose_metrics(given):
    """Complete and check --metrics in `given`; returns lines to print."""
    from metrics.registry import parse_metrics

    lines = []
    if "metrics" not in given:
        given["metrics"], lines = metrics_by_default(given)
        if given["metrics"] == "none":
            given.pop("detector", None)  # nothing to detect for
    try:
        names = [metric.name for metric in parse_metrics(given["metrics"])]
    except UserError as error:
        raise OptionError(f"--metrics: {error}") from error
    given["metrics"] = ",".join(names) or "none"
    return lines


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


def open_metrics(plan, by_default):
    """The plan, and a function that returns what measures the snapshots of a run.

    Metrics that were asked for must be possible before training starts; those that nobody asked
    for do not stand in its way: the settings of a new run then say that they are off. The function
    is None where nothing is measured.
    """
    from metrics.evaluation import Settings
    from metrics.follow import RunMetrics
    from training.launch.launch import spawns

    config = plan.config
    if config.metrics in (None, "none"):
        return plan, None
    settings = Settings(device=config.device, detector=config.detector, verbose=True)
    kwargs = config.training_set_kwargs()
    view = {name: kwargs[name] for name in ("max_size", "xflip", "random_seed") if name in kwargs}
    open_evaluate = partial(RunMetrics, config.metrics, data=config.data, **view)
    elsewhere = spawns(plan)
    try:
        here = dataclasses.replace(settings, device="cpu") if elsewhere else settings
        evaluate = open_evaluate(settings=here)
    except UserError as error:
        if not by_default:
            raise UserError(f"{error}; or leave metrics out by --metrics=none") from error
        click.echo(f"Metrics are off: {error}.")
        if not plan.resuming:  # of a run that is resumed they may be possible again next time
            plan = dataclasses.replace(plan, config=dataclasses.replace(config, metrics="none"))
        return plan, None
    # Another process loads its own: detectors cannot be pickled.
    return plan, partial(open_evaluate, settings=settings) if elsewhere else lambda: evaluate


def say_how_it_ended(outcome):
    """Print where to look, or what has been saved."""
    if outcome.done:
        click.echo(f"Done. Open {outcome.run_dir / 'index.html'}")
        return
    saved = "nothing could be saved."
    if outcome.saved_kimg is not None:
        saved = (
            f"the checkpoint of kimg {outcome.saved_kimg:.1f} is saved. "
            "The same command resumes from there."
        )
    click.echo(f"Stopped by {outcome.signal} at kimg {outcome.kimg:.1f}; {saved}")


if __name__ == "__main__":
    main()
