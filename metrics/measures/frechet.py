"""Frechet distance (FID): Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule."""

from typing import TYPE_CHECKING

import numpy as np

from metrics.moments import Moments
from metrics.registry import ComputeSettings, Values, register

if TYPE_CHECKING:
    import torch

    from metrics.features import Collected

# torch is imported inside functions: the registry must stay cheap to import.


@register("fid{n}_full", detector="inception", full=True, better={"": "lower"})
@register("fid{n}", detector="inception", num_real=50_000, better={"": "lower"})
def fid(real: "Collected", generated: "Collected", settings: ComputeSettings) -> Values:
    """Frechet distance of Inception features; needs their moments."""
    return {"": frechet_distance(real.require_moments(), generated.require_moments())}


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Wasserstein-2 distance of two Gaussians (Heusel et al. 2017, equation 6).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), never below 0.
    """
    shift = np.square(a.mean - b.mean).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance)
    distance = shift + spread - 2 * trace_of_root(a.covariance, b.covariance)
    return float(max(distance, 0.0))


def trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    """Trace of the matrix square root of a b, for covariances float64 [D, D].

    With a = F F^T, the product a b has the eigenvalues of the symmetric F^T b F, which are real and
    not negative; a general matrix square root of a b is slower, and can fail where a or b is
    singular. F is a Cholesky factor of either covariance, or made of eigenvectors where both are
    singular.
    """
    import torch

    first, second = torch.from_numpy(a), torch.from_numpy(b)
    factor, other = _cholesky(first), second
    if factor is None:
        factor, other = _cholesky(second), first
    if factor is None:
        values, vectors = torch.linalg.eigh(first)
        factor, other = vectors * values.clamp(min=0).sqrt(), second
    product = factor.T @ other @ factor
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    return float(eigenvalues.clamp(min=0).sqrt().sum())


def _cholesky(matrix: "torch.Tensor") -> "torch.Tensor | None":
    """Lower triangular factor [D, D], or None where the matrix [D, D] is singular."""
    import torch

    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else factor
