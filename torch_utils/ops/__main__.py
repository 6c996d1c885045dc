"""Native operators: what is there, and building them ahead.

\b
  python -m torch_utils.ops doctor    what is available, what is missing, what to do
  python -m torch_utils.ops build     build now, for example in a Dockerfile
"""

import sys

import click

DEVICES = ("cpu", "cuda")


@click.group(help=__doc__)
def main() -> None:
    """Run one of the commands."""


@main.command()
def doctor() -> None:
    """Say what is available, what is missing and what to do. Builds nothing."""
    from torch_utils.ops.native import doctor

    click.echo(doctor.report())


@main.command()
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    multiple=True,
    help="What to build for; may be repeated  [default: cpu, and cuda where PyTorch has it]",
)
def build(device: tuple[str, ...]) -> None:
    """Build the native operators now, also where a build has failed before."""
    import torch

    from torch_utils.ops.native import build

    failed = False
    for name in device or (DEVICES if torch.version.cuda else DEVICES[:1]):
        try:
            click.echo(f"{name}: {build.library(name, retry=True)}")
        except build.BuildError as error:
            failed = True
            click.echo(f"{name}: {error}", err=True)
    sys.exit(failed)


if __name__ == "__main__":
    main(prog_name="python -m torch_utils.ops")
