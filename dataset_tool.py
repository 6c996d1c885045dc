"""Make a dataset archive for training from folders, zips and published data sets."""

import os
from typing import Any

import click

from dnnlib.command import UserCommand
from dnnlib.errors import UserError
from training.data.convert.data_sources import open_source
from training.data.convert.dataset_writer import check_destination, scan, write_archive
from training.data.convert.image_source import LABEL_CHOICES, ImageSource
from training.data.convert.image_transforms import RESIZE_FILTERS, TRANSFORMS, Resize
from training.data.image_files import MIN_RESOLUTION, DatasetError, is_usable_resolution


@click.command(cls=UserCommand, context_settings={"show_default": True, "max_content_width": 100})
@click.option("--source", required=True, metavar="PATH", help="What to read (see above).")
@click.option("--dest", required=True, metavar="PATH", help="Archive to write: NAME.zip or folder.")
@click.option("--max-images", type=click.IntRange(min=1), help="Use only the first N images.")
@click.option(
    "--resize-filter",
    type=click.Choice(list(RESIZE_FILTERS)),
    default="lanczos",
    help="Resampling filter; box suits small integer reductions.",
)
@click.option(
    "--transform",
    type=click.Choice(TRANSFORMS),
    help="Crop to the centre: to a square, or to width:height set on a black square.",
)
@click.option("--width", type=click.IntRange(min=1), help="Width in pixels.  [default: source's]")
@click.option("--height", type=click.IntRange(min=1), help="Height in pixels.  [default: source's]")
@click.option(
    "--labels",
    type=click.Choice(LABEL_CHOICES),
    default="auto",
    help="auto: those of the source; none; folders: folder names; coarse: CIFAR-100's 20 classes.",
)
@click.option("--skip-unusable", is_flag=True, help="Leave unusable images out and go on.")
def main(**options: Any) -> None:
    """Make a dataset archive for training: one square power-of-two size, labels kept.

    \b
    --source is one of
      FOLDER or FILE.zip             images with dataset.json, or in one folder a class, or neither
      cifar-10-python.tar.gz         CIFAR-10 as published
      cifar-100-python.tar.gz        CIFAR-100 as published
      train-images-idx3-ubyte.gz     MNIST as published, its labels file beside it
      FOLDER or FILE.zip             downsampled ImageNet: train_data_batch_1 .. 10, or .npz
      FOLDER_lmdb                    LSUN as published (pip install lmdb)
      digits                         handwritten digits that come with scikit-learn

    All images are scanned before anything is written; unusable ones are listed at once. Alpha
    is dropped, 16-bit grey becomes 8-bit, grey among RGB becomes RGB, EXIF rotation is ignored.
    """
    try:
        _check_size(options)
        _run(**options)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{error.filename or options['source']}: {reason}") from error


def _run(
    *,
    source: str,
    dest: str,
    max_images: int | None,
    labels: str,
    skip_unusable: bool,
    **geometry: Any,
) -> None:
    if source != "digits" and not os.path.exists(source):
        raise click.BadParameter(f"'{source}' does not exist.", param_hint="--source")
    if os.path.exists(source) and os.path.exists(dest) and os.path.samefile(source, dest):
        raise DatasetError(f"--dest is the source itself, '{source}'; give another name.")
    check_destination(dest)
    reader = open_source(source, labels)
    if labels not in reader.label_choices:
        raise click.BadParameter(
            f"'{labels}' is not for {reader.kind}; it has {', '.join(reader.label_choices)}.",
            param_hint="--labels",
        )
    resize = _resize(reader, **geometry)
    plan = scan(reader, resize, max_images)
    for note in [*reader.notes, *plan.notes]:
        click.echo(f"Note: {note}.", err=True)
    if plan.problems and not (skip_unusable and any(plan.keep)):
        raise UserError(plan.report())
    if plan.problems:
        click.echo(f"Note: {len(plan.problems)} unusable images are left out.", err=True)
    count = write_archive(reader, plan, resize, dest, max_images)
    colours = "RGB" if plan.mode == "RGB" else "grey"
    labelled = "with labels" if plan.labelled else "without labels"
    click.echo(f"Wrote {count} images, {plan.size}x{plan.size} {colours}, {labelled}, to {dest}")


def _resize(
    reader: ImageSource,
    width: int | None,
    height: int | None,
    resize_filter: str,
    transform: str | None,
) -> Resize:
    if reader.default_size is not None:
        width = width or height or reader.default_size
        height = height or width
    return Resize(width, height, resize_filter, transform)


def _check_size(options: dict[str, Any]) -> None:
    """Refuse sizes that no image could be brought to, before anything is read."""
    width, height, transform = options["width"], options["height"], options["transform"]
    if transform and not (width and height):
        raise click.UsageError(f"--transform={transform} needs --width and --height.")
    if transform == "center-crop-wide":
        if height > width:
            raise click.UsageError("--transform=center-crop-wide needs --width >= --height.")
        height = width  # the canvas is square
    if width and height and width != height:
        raise click.UsageError(
            f"{width}x{height} is not square; give equal --width and --height, or use "
            "--transform=center-crop-wide for a wide picture on a square canvas."
        )
    for size in filter(None, (width, height)):
        if not is_usable_resolution(size):
            raise click.UsageError(f"{size} is not a power of two from {MIN_RESOLUTION}.")


if __name__ == "__main__":
    main()
