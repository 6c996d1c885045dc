"""The Inception network of the torch-fidelity package as a detector (`--detector=torch-fidelity`).

Its weights are converted from the same TensorFlow file as those of the standard detector, and come
from another server.
"""

import pickle
from typing import Any

import torch

from dnnlib.hashing import file_sha256
from dnnlib.util import first_line
from metrics import MetricError
from metrics.detector import Detector, detector_file

TORCH_FIDELITY = "torch-fidelity"


def load_fidelity_detector(standard: str, device: torch.device) -> Detector:
    """Inception of torch-fidelity; its weights are downloaded once to the cache of downloads.

    Args:
        standard: The metric's standard detector.
        device: Where it is to run.

    Raises:
        MetricError: The package is not installed, the weights cannot be had, or the metric needs
            another network than Inception.
    """
    if standard != "inception":
        raise MetricError(f"torch-fidelity has Inception only; this metric needs {standard}")
    try:
        # An extra, which need not be here.
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # the second: a torchvision for another torch
        raise MetricError(
            f"--detector=torch-fidelity needs the package: pip install torch-fidelity "
            f"({first_line(error)})"
        ) from None
    url = fidelity.URL_INCEPTION_V3
    path = detector_file(url)
    try:
        # The package itself would load the file as a program.
        torch.load(path, map_location="cpu", weights_only=True)
        network = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], str(path)
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise MetricError(
            f"the weights of torch-fidelity are damaged ({first_line(error)}); remove {path}"
        ) from None
    return Detector(
        module=_Convention(network.to(device)),
        name=TORCH_FIDELITY,
        sha256=file_sha256(path),
        source=url,
        device=device,
    )


class _Convention(torch.nn.Module):
    """Gives torch-fidelity's network the calling convention of detectors."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network

    def forward(
        self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = True
    ) -> torch.Tensor:
        """Features [N, 2048], or the probabilities without the bias, as nobody asks for others.

        Args:
            images: uint8 [N, 3, H, W].
            return_features: Whether features are meant.
            no_output_bias: Part of the calling convention.
        """
        features, logits = self._network(images)
        return features if return_features else logits.softmax(dim=1)
