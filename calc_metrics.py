"""Measure the quality of generated images: FID, KID, precision and recall, and others.

\b
  python calc_metrics.py --network=network-snapshot-025000.pkl --metrics=fid50k_full,kid50k_full
  python calc_metrics.py --real=photos.zip --fake=folder/ --metrics=fid10k_full

Each result is printed as one line of JSON, and added to metric-NAME.jsonl of the run folder that
the snapshot lies in. A metric may ask for another number of images than the standard one:
fid2k_full. Results of another detector than the standard one bear its name: fid50k_full@digits.
Image i of --seed=0 has the latent of generate.py --seeds=i.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dnnlib.command import UserCommand
from dnnlib.util import is_url
from metrics.registry import metric_names, parse_metrics

if TYPE_CHECKING:
    from metrics.evaluation import Result
    from metrics.job import Job

# torch is imported inside functions, so that --help answers at once.

_RUNS = Path("training-runs")


@click.command(
    cls=UserCommand,
    help=__doc__,
    context_settings={"show_default": True, "max_content_width": 100},
    epilog=f"Metrics: {', '.join(metric_names())}.",
)
@click.option(
    "--network",
    metavar="PKL",
    help="Network snapshot: path or URL, or a run folder for its newest  [default: the "
    "newest below training-runs]",
)
@click.option(
    "--metrics",
    default="fid50k_full",
    metavar="LIST",
    help="Comma-separated names of metrics, see below",
)
@click.option(
    "--data",
    metavar="PATH",
    help="Data set of the network, all of it  [default: the snapshot's, with its subset]",
)
@click.option(
    "--mirror",
    type=bool,
    metavar="BOOL",
    help="Add x-flipped images to the real ones where a metric's name does not end in "
    "_full  [default: the snapshot's]",
)
@click.option("--gpus", type=click.IntRange(min=1), default=1, help="Processes, a GPU each")
@click.option("--verbose", type=bool, default=True, metavar="BOOL", help="Show progress")
@click.option(
    "--real",
    metavar="PATH",
    help="Compare with these instead of --data: folder or zip of images of one size, or "
    ".npz with an array called features",
)
@click.option(
    "--fake",
    metavar="PATH",
    help="Images or features to measure instead of a network: folder, zip or .npz",
)
@click.option(
    "--detector",
    metavar="PT",
    help="TorchScript file instead of the standard detectors: path or URL, or "
    "torch-fidelity. It may run any PyTorch operator: use files that you trust",
)
@click.option("--seed", type=int, default=0, help="Seed of the generated images")
@click.option(
    "--noise-mode",
    type=click.Choice(["random", "const", "none"]),
    default="random",
    help="Noise inputs of the network; the same images at every call in any case",
)
@click.option("--device", metavar="NAME", help="cuda or cpu  [default: cuda where there is one]")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=64,
    help="Most images a pass of the detector; half as many where memory is short",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    metavar="GB",
    help="Most memory for distances between features",
)
@click.option(
    "--cache",
    type=bool,
    default=True,
    metavar="BOOL",
    help="Keep statistics of data sets in $DNNLIB_CACHE_DIR or ~/.cache/dnnlib",
)
def main(**options: Any) -> None:
    """Parse the command line, measure, report."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, force=True)
    job = _job(options)
    _report(job, _measure(job, options["gpus"]), options["verbose"])


def _job(options: dict[str, Any]) -> "Job":
    metrics = parse_metrics(options["metrics"])
    if not metrics:
        raise click.UsageError("--metrics names none; try --metrics=fid50k_full.")
    if options["network"] is not None and options["fake"] is not None:
        raise click.UsageError("Give --network or --fake, not both.")
    if options["fake"] is not None and options["data"] and options["real"]:
        raise click.UsageError("Give --data or --real, not both, to compare --fake with.")
    for name in ("data", "real", "fake"):
        path = options[name]
        if path is not None and not Path(path).exists():
            raise click.UsageError(f"--{name}={path} does not exist.")
    from metrics.evaluation import Settings
    from metrics.generated import MAX_SEED
    from metrics.job import Job

    if not 0 <= options["seed"] <= MAX_SEED:
        raise click.UsageError(f"--seed must be from 0 to {MAX_SEED}, not {options['seed']}.")
    return Job(
        metrics=tuple(metric.name for metric in metrics),
        network=None if options["fake"] is not None else _snapshot(options["network"]),
        fake=options["fake"],
        data=options["data"],
        real=options["real"],
        mirror=options["mirror"],
        settings=Settings(
            device=_device(options["device"], options["gpus"]),
            detector=options["detector"],
            seed=options["seed"],
            noise_mode=options["noise_mode"],
            batch=options["batch"],
            memory_bytes=int(options["memory"] * 2**30),
            cache=options["cache"],
            verbose=options["verbose"],
        ),
    )


def _snapshot(network: str | None) -> str:
    """The snapshot that is meant: the newest one where --network is a folder or not given."""
    if network is not None and not Path(network).is_dir():
        return network
    folder, pattern = (network, "") if network else (_RUNS, "*/")
    found = [p for p in Path(folder).glob(f"{pattern}network-snapshot-*.pkl") if p.is_file()]
    if not found and network is not None:
        raise click.UsageError(
            f"There is no network-snapshot-*.pkl in --network={network}; for images give --fake."
        )
    if not found:
        raise click.UsageError(
            f"There is no snapshot below {_RUNS}/: give --network, or images by --fake."
        )
    newest = str(max(found, key=lambda path: (path.stat().st_mtime_ns, path.name)))
    click.echo(f"Network: {newest}", err=True)
    return newest


def _device(name: str | None, gpus: int) -> str:
    from torch_utils.devices import find_device

    try:
        return str(find_device(name, gpus))
    except ValueError as error:
        raise click.UsageError(f"{error}.") from None


def _measure(job: "Job", processes: int) -> "list[Result]":
    from metrics.job import run_job
    from torch_utils.spawn import run_processes

    return run_processes(run_job, processes, job, device=job.settings.device)


def _report(job: "Job", results: "list[Result]", verbose: bool) -> None:
    from metrics.report import append_result, describe, json_line, run_dir_of

    run_dir = None
    if job.network is not None and not is_url(job.network):
        run_dir = run_dir_of(job.network)
    for result in results:
        line = json_line(result, job.network or job.fake, run_dir)
        click.echo(line)
        if verbose:
            for text in describe(result):
                click.echo(text, err=True)
        if run_dir is not None:
            try:
                append_result(run_dir, result, line)
            except OSError as error:
                click.echo(f"Warning: the result was not saved in {run_dir}: {error}.", err=True)


if __name__ == "__main__":
    main()
