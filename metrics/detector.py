"""A network that turns images into features: how it is asked, and what it may answer."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.util import DownloadError, cache_path, first_line, is_url, open_url
from metrics import MetricError
from metrics.features import require_finite

_ARGUMENTS: dict[str, dict[str, bool]] = {  # of the official calling convention, by output
    "features": {"return_features": True},
    "probabilities": {"no_output_bias": True},
    "lpips": {"return_lpips": True, "resize_images": False},
}


@dataclass(frozen=True)
class Detector:
    """A network, where it came from, and how results of it are marked."""

    module: Any
    """A `torch.nn.Module` or a script module that has the official calling convention."""
    name: str
    """The part after @ in the names of results; "" for the standard detector."""
    sha256: str
    """Of its file."""
    source: str
    """The path or URL that it came from."""
    device: torch.device
    widths: Mapping[str, int] = field(default_factory=dict)
    """Expected number of columns, by output; of outputs that are not in it nothing is known."""

    def __call__(
        self, images: torch.Tensor, output: str, start: int = 0, batch: int = 64
    ) -> np.ndarray:
        """What the network says about images.

        Args:
            images: [N, 1 or 3, H, W] with values in 0..255, uint8 or float32.
            output: "features" [N, D]; "probabilities" of classes [N, K], by the softmax without
                the bias of the last layer; "lpips" [N, L], whose squared differences sum up to the
                perceptual distance.
            start: Index of the first image, for messages.
            batch: Most images in a pass; half as many where these do not fit into memory.

        Returns:
            float32 array [N, D], [N, K] or [N, L].

        Raises:
            MetricError: Values are not finite (the image is named), or the network fails, lacks
                the output or gives another shape.
        """
        while (rows := self._rows(images, output, batch)) is None:
            batch = min(batch, len(images)) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        require_finite(rows, start, "the detector's output for image")
        return rows

    def _rows(self, images: torch.Tensor, output: str, batch: int) -> np.ndarray | None:
        """The rows of all images; None where a batch of more than one is too much for memory."""
        arguments = self._arguments(output)
        parts = []
        for part in images.split(batch):
            try:
                part = part.to(self.device)
                if part.shape[1] == 1:
                    part = part.repeat(1, 3, 1, 1)
                with torch.inference_mode():
                    rows = self.module(part, **arguments)
            except Exception as error:  # TorchScript raises what its operators raise
                if not is_out_of_memory(error):
                    text = reason_of(error)
                    raise MetricError(f"detector {self.source} fails: {text}") from error
                if len(part) > 1:
                    return None
                raise
            parts.append(self._checked(rows, len(part), output))
        return np.concatenate(parts)

    def require_output(self, output: str) -> None:
        """Check that the network can give an output.

        Raises:
            MetricError: It cannot.
        """
        needed = next(iter(_ARGUMENTS[output]))
        if needed not in self._known_arguments():
            raise MetricError(
                f"detector {self.source} has no {output}: its forward() takes no {needed}"
            )

    def _arguments(self, output: str) -> dict[str, bool]:
        self.require_output(output)
        known = self._known_arguments()
        # resize_images is the VGG file's own: without it, it would shrink images to 224 pixels.
        return {key: value for key, value in _ARGUMENTS[output].items() if key in known}

    def _known_arguments(self) -> set[str]:
        schema = getattr(self.module.forward, "schema", None)
        if schema is None:  # no TorchScript
            return set(inspect.signature(self.module.forward).parameters)
        return {argument.name for argument in schema.arguments}

    def _checked(self, rows: Any, count: int, output: str) -> np.ndarray:
        """What the module returned for `count` images as float32 [count, columns]."""
        if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != count:
            shape = list(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise MetricError(
                f"detector {self.source} returned {shape} for {count} images, not "
                f"[{count}, {output}]"
            )
        width = self.widths.get(output, rows.shape[1])
        if rows.shape[1] != width:
            raise MetricError(
                f"{self.source} is not the standard detector: {rows.shape[1]} {output} instead "
                f"of {width}; remove it from the cache"
            )
        return rows.float().cpu().numpy()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory; TorchScript says so in the text of other errors."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text)
    )


def reason_of(error: BaseException) -> str:
    """The error's last line of text: PyTorch puts the reason after a traceback of the script."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return first_line(ValueError(lines[-1])) if lines else type(error).__name__


def detector_file(source: str) -> Path:
    """The file of a detector by path or URL, which is downloaded once.

    Raises:
        MetricError: It cannot be had.
    """
    try:
        with open_url(source):
            return cache_path(source) if is_url(source) else Path(source)
    except DownloadError as error:
        raise MetricError(
            f"{error}, or choose another detector by --detector (python -m metrics.train_detector "
            "makes one)"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise MetricError(f"cannot read --detector={source}: {reason}") from None
