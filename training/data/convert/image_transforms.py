"""Pixel formats and geometry of dataset_tool.py: any image in, L or RGB of one size out."""

from dataclasses import dataclass

import numpy as np
import PIL.Image

from training.data.image_files import ALPHA_MODES

RESIZE_FILTERS = {"box": PIL.Image.Resampling.BOX, "lanczos": PIL.Image.Resampling.LANCZOS}
TRANSFORMS = ("center-crop", "center-crop-wide")


class PixelFormatError(ValueError):
    """The image is readable, but the range of its pixel values is unknown."""


def has_alpha(image: PIL.Image.Image) -> bool:
    """Whether the image carries transparency, which the networks have no use for."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def to_grey_or_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert to mode L or RGB, 8 bits a channel.

    Grey stays grey. Palette, CMYK and all else become RGB; alpha is dropped, not blended, since
    no background colour is known. 16-bit grey is scaled by 255/65535 and rounded. The EXIF
    orientation is left as it is.

    Raises:
        PixelFormatError: The pixels are 32-bit integers or floats.
    """
    image.load()  # damage shows here, for images that need no conversion too
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA"):
        return image.convert("L")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        pixels = np.asarray(image).astype(np.float64)
        return PIL.Image.fromarray(np.rint(pixels * (255 / 65535)).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise PixelFormatError(
            f"has 32-bit pixels (mode {image.mode}) of unknown range; convert it to 8 bits"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return image.convert("RGB")


@dataclass(frozen=True)
class Resize:
    """What becomes of an image's geometry.

    No transform: stretched to width x height (a missing one keeps the image's own).
    center-crop: the largest centred square, resized to width x height.
    center-crop-wide: the centred region of aspect width:height, over the full width of the image,
    resized to width x height and set on a black square canvas of width x width; images too small
    for that are dropped.

    Args:
        width, height: In pixels; None: the image's own.
        filter: Key of `RESIZE_FILTERS`.
        transform: One of `TRANSFORMS`, or None.
    """

    width: int | None = None
    height: int | None = None
    filter: str = "lanczos"
    transform: str | None = None

    def output_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The (width, height) that an image of this size gets; None: it is dropped."""
        width, height = size
        if self.transform == "center-crop-wide":
            wide_width, wide_height = self._wide_size
            fits = width >= wide_width and self._wide_scaled_height(size) >= wide_height
            return (wide_width, wide_width) if fits else None
        return self._own_size(size)

    def apply(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Transform an L or RGB image whose output_size is not None."""
        if self.transform == "center-crop":
            side = min(image.size)
            image = _center_crop(image, side, side)
        if self.transform == "center-crop-wide":
            return self._apply_wide(image)
        size = self._own_size(image.size)
        # Resampling to the same size would be exact, but this is every pixel of the usual case.
        return image if size == image.size else image.resize(size, RESIZE_FILTERS[self.filter])

    def _own_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return (self.width or size[0], self.height or size[1])

    @property
    def _wide_size(self) -> tuple[int, int]:
        assert self.width and self.height, "center-crop-wide needs both"
        return self.width, self.height

    def _wide_scaled_height(self, size: tuple[int, int]) -> int:
        """The height of the whole image once scaled to the wanted width."""
        return round(self._wide_size[0] * size[1] / size[0])

    def _apply_wide(self, image: PIL.Image.Image) -> PIL.Image.Image:
        width, height = self._wide_size
        kept = max(round(height * image.height / self._wide_scaled_height(image.size)), 1)
        strip = _center_crop(image, image.width, min(kept, image.height))
        strip = strip.resize((width, height), RESIZE_FILTERS[self.filter])
        canvas = PIL.Image.new(image.mode, (width, width))  # black
        canvas.paste(strip, (0, (width - height) // 2))
        return canvas


def _center_crop(image: PIL.Image.Image, width: int, height: int) -> PIL.Image.Image:
    left = (image.width - width) // 2
    top = (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
