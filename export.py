"""Turn network snapshots into safetensors with JSON, and back.

\b
  python export.py --network=network-snapshot-025000.pkl --dest=faces.safetensors
  python export.py --network=faces.safetensors --dest=faces.pkl
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from dnnlib.command import UserCommand
from dnnlib.errors import UserError
from dnnlib.util import first_line

# torch is imported inside functions, so that --help answers at once.


@click.command(cls=UserCommand, help=__doc__)
@click.option(
    "--network",
    required=True,
    metavar="FILE",
    help="Snapshot (path or URL), or .safetensors with its .json beside it",
)
@click.option(
    "--dest",
    required=True,
    metavar="FILE",
    help="File to write: .safetensors, with a .json beside it, or .pkl",
)
def main(network: str, dest: str) -> None:
    """Read one form, write the other."""
    kinds = Path(network).suffix == ".safetensors", Path(dest).suffix
    if kinds not in ((False, ".safetensors"), (True, ".pkl")):
        raise click.UsageError(
            "One of --network and --dest must be .safetensors, --dest else .pkl."
        )
    with errors_in_one_line(network, dest):
        if kinds[0]:
            from training.run.safetensors_io import import_networks, save_imported

            save_imported(import_networks(network), dest)
        else:
            from training.run.safetensors_io import export_networks
            from training.run.snapshot_file import read_networks

            export_networks(read_networks(network, f"--network={network}"), dest)
    click.echo(f"Wrote {dest}")


@contextlib.contextmanager
def errors_in_one_line(network: str, dest: str) -> Iterator[None]:
    """Context that turns errors of reading and writing into those of the user, with the options."""
    try:
        yield
    except ValueError as error:
        reason = first_line(error)
        raise UserError(f"Cannot use --network={network}: {reason}.") from error
    except OSError as error:
        raise UserError(
            f"Cannot turn --network={network} into --dest={dest}: {first_line(error)}."
        ) from error


if __name__ == "__main__":
    main()
