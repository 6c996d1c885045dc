"""Generate images with a trained network.

\b
  python generate.py --network=network-snapshot-025000.pkl --seeds=0-35 --outdir=out --grid
"""

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dnnlib.command import UserCommand
from dnnlib.errors import UserError
from dnnlib.util import first_line
from torch_utils.host_memory import keep_freed_memory
from torch_utils.ops.backend import MODES, select

if TYPE_CHECKING:
    import torch

    from torch_utils.sampler import Sampler

# torch is imported inside functions, so that --help answers at once.

_MAX_SEED = 2**32 - 1  # of numpy's RandomState
_MAX_SEEDS = 1_000_000


@dataclass(frozen=True)
class Options:
    """The command line, parsed."""

    network: str
    """Snapshot to use: path or URL."""
    seeds: list[int] | None
    """One image is made for each."""
    truncation_psi: float
    """1 is no truncation, 0 always the mean image."""
    class_idx: int | None
    """Class to show, for a conditional network."""
    noise_mode: str
    """const, random or none."""
    projected_w: str | None
    """npz file with latents to render instead of seeds."""
    outdir: str
    """Folder for the images."""
    device: str | None
    """torch device; None takes the GPU where there is one."""
    ops: str
    """Operators: native, ref (plain PyTorch) or auto (what can be had)."""
    batch: int
    """Images made at once."""
    grid: str | None
    """Contact sheet, relative to outdir."""


def parse_seeds(text: str) -> list[int]:
    """Seeds of a list with ranges, ends included, without repetitions: `1,2,5-9`.

    Raises:
        ValueError: The text is none; the message is for the user.
    """
    seeds: dict[int, None] = {}  # each once, in order
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"{part.strip()!r} is no seed; write a list such as 1,2,5-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ValueError(f"range {part.strip()} runs backwards; write {last}-{first}")
        if last > _MAX_SEED:
            raise ValueError(f"seed {last} is above {_MAX_SEED}")
        if len(seeds) + last - first >= _MAX_SEEDS:
            raise ValueError(f"more than {_MAX_SEEDS} seeds; make them in several runs")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def _seeds_option(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> list[int] | None:
    try:
        return None if value is None else parse_seeds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(cls=UserCommand, help=__doc__)
@click.option("--network", required=True, metavar="PKL", help="Network snapshot: path or URL")
@click.option("--seeds", callback=_seeds_option, metavar="LIST", help="Seeds, e.g. 1,2,5-9")
@click.option(
    "--trunc",
    "truncation_psi",
    type=float,
    default=1,
    show_default=True,
    metavar="PSI",
    help="Truncation: 1 is none, 0 always the mean image",
)
@click.option(
    "--class",
    "class_idx",
    type=int,
    metavar="INT",
    help="Class to generate; required for a conditional network",
)
@click.option(
    "--noise-mode",
    type=click.Choice(["const", "random", "none"]),
    default="const",
    show_default=True,
    help="Noise inputs; random ones follow from the seed",
)
@click.option(
    "--projected-w",
    metavar="FILE",
    help="Render the latents in this npz file (array w) instead of seeds",
)
@click.option("--outdir", required=True, metavar="DIR", help="Where to save the images")
@click.option("--device", metavar="NAME", help="cuda or cpu  [default: cuda where there is one]")
@click.option(
    "--ops",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="Operators: native, ref (plain PyTorch) or auto (what can be had)",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Images to make at once",
)
@click.option(
    "--grid",
    is_flag=False,
    flag_value="grid.png",
    metavar="[FILE]",
    help="Also save all images on one sheet, grid.png or FILE in --outdir",
)
def main(**options: Any) -> None:
    """Parse the command line and generate."""
    opts = Options(**options)
    if not math.isfinite(opts.truncation_psi):
        raise click.UsageError(f"--trunc must be a number, not {opts.truncation_psi}")
    latents = _read_latents(opts)
    device = _choose_device(opts.device)
    if device.type == "cpu":
        keep_freed_memory()
    select(opts.ops, device.type)
    sampler = _open_network(opts.network, device)
    if latents is None:
        seeds = opts.seeds or []
        label = _label(sampler, opts.class_idx).to(device)
        names = [f"seed{seed:04d}.png" for seed in seeds]
        images = _images_of_seeds(sampler, seeds, label, opts)
    else:
        latents = _fit_latents(latents, sampler, opts.projected_w)
        digits = max(2, len(str(len(latents) - 1)))
        names = [f"proj{idx:0{digits}d}.png" for idx in range(len(latents))]
        images = _images_of_latents(sampler, latents, opts)
    grid = None if opts.grid is None else _grid_path(Path(opts.outdir), opts.grid, names)
    outdir = _prepare_folder(opts.outdir)
    _save(images, names, outdir, grid)


def _read_latents(opts: Options) -> np.ndarray | None:
    """The array of --projected-w, None when images come from seeds."""
    if opts.projected_w is None:
        if opts.seeds is None:
            raise click.UsageError("Give --seeds, e.g. --seeds=0-35, or --projected-w=FILE.")
        return None
    for given, name in ((opts.seeds, "--seeds"), (opts.class_idx, "--class")):
        if given is not None:
            click.echo(f"Warning: {name} has no effect together with --projected-w.", err=True)
    try:
        archive = np.load(opts.projected_w)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is no .npz file; make one with numpy.savez(FILE, w=ARRAY)")
        with archive:
            return archive["w"]
    except Exception as error:  # whatever a wrong or damaged file makes NumPy and zipfile raise
        raise UserError(
            f"Cannot read array w of --projected-w={opts.projected_w}: {first_line(error)}"
        ) from None


def _fit_latents(latents: np.ndarray, sampler: "Sampler", name: str | None) -> np.ndarray:
    """The latents as float32 [N, *w_shape], or an error where they are something else."""
    shape = sampler.w_shape
    fits = latents.ndim == 1 + len(shape) and latents.shape[1:] == shape and len(latents) > 0
    if not fits or latents.dtype.kind != "f":
        raise UserError(
            f"Array w of {name} has shape {list(latents.shape)} and type {latents.dtype}; "
            f"this network needs floats of shape [N, {', '.join(map(str, shape))}], N >= 1."
        )
    return latents.astype(np.float32)


def _prepare_folder(name: str) -> Path:
    try:
        os.makedirs(name, exist_ok=True)
        with tempfile.TemporaryFile(dir=name):  # permissions say little on network file systems
            pass
    except OSError as error:
        raise UserError(
            f"Cannot write to --outdir={name}: {error.strerror}. Choose another folder."
        ) from None
    return Path(name)


def _grid_path(outdir: Path, name: str, names: list[str]) -> Path:
    outdir = outdir.resolve()  # it may not be there yet
    path = (outdir / name).resolve()
    if path in (outdir, *outdir.parents) or path.is_dir():
        raise click.UsageError(f"--grid={name} is a folder; give the name of a file.")
    if path.parent != outdir and not path.parent.is_dir():
        raise click.UsageError(f"--grid={name}: there is no folder {path.parent}.")
    if path in {outdir / image for image in names}:
        raise click.UsageError(f"--grid={name} is the name of an image; choose another.")
    return path


def _choose_device(name: str | None) -> "torch.device":
    from torch_utils.devices import find_device

    try:
        return find_device(name)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from None


def _open_network(name: str, device: "torch.device") -> "Sampler":
    from training.run.snapshot_file import read_sampler

    sampler, _ = read_sampler(name, f"--network={name}", device)
    return sampler


def _label(sampler: "Sampler", class_idx: int | None) -> "torch.Tensor":
    """One-hot label float32 [1, c_dim]."""
    import torch

    from training.data.labels import one_hot

    if sampler.c_dim == 0:
        if class_idx is not None:
            click.echo("Warning: --class has no effect, the network is unconditional.", err=True)
        return torch.zeros([1, 0])
    choices = f"0 to {sampler.c_dim - 1}"
    if class_idx is None:
        raise click.UsageError(f"The network is conditional: give --class, {choices}.")
    if not 0 <= class_idx < sampler.c_dim:
        raise click.UsageError(f"--class={class_idx} is out of range: the network has {choices}.")
    return torch.from_numpy(one_hot(np.array([class_idx]), sampler.c_dim))


def _batches(items: Any, opts: Options) -> Iterator[Any]:
    # Random noise inputs are drawn for a whole batch at once: only batches of one make the image
    # of a seed the same whatever other seeds are asked for.
    step = 1 if opts.noise_mode == "random" else opts.batch
    for start in range(0, len(items), step):
        yield items[start : start + step]


def _images_of_seeds(
    sampler: "Sampler", seeds: list[int], label: "torch.Tensor", opts: Options
) -> Iterator[np.ndarray]:
    """Images uint8 [1, C, H, W] of the seeds; label: float32 [1, c_dim]."""
    import torch

    for part in _batches(seeds, opts):
        z = np.concatenate([np.random.RandomState(s).randn(1, sampler.z_dim) for s in part])
        z = torch.from_numpy(z).to(label.device, torch.float32)
        c = label.expand(len(part), -1)
        with torch.inference_mode():
            w = sampler.latents(z, c, opts.truncation_psi)
        yield from _synthesize(sampler, w, opts.noise_mode, noise_seed=part[0])


def _images_of_latents(
    sampler: "Sampler", latents: np.ndarray, opts: Options
) -> Iterator[np.ndarray]:
    """Images uint8 [1, C, H, W] of latents float32 [N, *w_shape]."""
    import torch

    # Random noise depends on the latent's place in the file.
    for indices in _batches(range(len(latents)), opts):
        w = torch.from_numpy(latents[indices.start : indices.stop]).to(sampler.device)
        yield from _synthesize(sampler, w, opts.noise_mode, noise_seed=indices.start)


def _synthesize(
    sampler: "Sampler", w: "torch.Tensor", noise_mode: str, noise_seed: int
) -> np.ndarray:
    """Images uint8 [N, 1, C, H, W] of latents [N, *w_shape], ready to be taken one by one."""
    import torch

    from torch_utils.image_values import pixels

    torch.manual_seed(noise_seed)
    with torch.inference_mode():
        return pixels(sampler.images(w, noise_mode))[:, None]


def _save(images: Iterator[np.ndarray], names: list[str], outdir: Path, grid: Path | None) -> None:
    from tqdm import tqdm

    from training.monitor.image_grid import save_image_grid

    kept = []
    with _writing(outdir):
        for name, image in zip(tqdm(names, unit="image", disable=None), images, strict=True):
            save_image_grid(outdir / name, image)
            if grid is not None:
                kept.append(image)
        if grid is not None:
            columns = math.ceil(math.sqrt(len(kept)))
            rows = math.ceil(len(kept) / columns)
            save_image_grid(grid, np.concatenate(kept), (columns, rows))
    sheet = "" if grid is None else f" and {os.path.relpath(grid, outdir)}"
    click.echo(f"Saved {len(names)} images{sheet} in {outdir}")


@contextlib.contextmanager
def _writing(outdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write to {outdir}: {error}.") from None


if __name__ == "__main__":
    main()
