"""Train StyleGAN2-ADA, optionally with a cooperative initialisation stage (CoopInit)."""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from dnnlib.command import SectionedCommand
from dnnlib.errors import OptionError, UserError
from training.settings.common import GENERAL, PERFORMANCE
from training.settings.options import option_sections

if TYPE_CHECKING:
    from training.launch.plan import RunPlan
    from training.launch.session import OpenEvaluate, Outcome

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


def choose_metrics(given: dict[str, Any]) -> list[str]:
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


def metrics_by_default(given: dict[str, Any]) -> tuple[str, list[str]]:
    """Metrics where the user names none, and lines to print about them."""
    from torch_utils.devices import find_device

    on_cpu = (given.get("device") or str(find_device())) == "cpu"
    if not on_cpu:
        return "fid50k_full", []
    return "none", [
        "Metrics are off: fid50k_full would take hours on the CPU. For numbers of a small detector "
        "of your own: python -m metrics.train_detector, then --detector=FILE --metrics=fid2k_full"
    ]


def open_metrics(plan: "RunPlan", by_default: bool) -> "tuple[RunPlan, OpenEvaluate | None]":
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
        if plan.run_dir is None:  # of a run that is resumed they may be possible again next time
            plan = dataclasses.replace(plan, config=dataclasses.replace(config, metrics="none"))
        return plan, None
    # Another process loads its own: detectors cannot be pickled.
    return plan, partial(open_evaluate, settings=settings) if elsewhere else lambda: evaluate


def say_how_it_ended(outcome: "Outcome") -> None:
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
