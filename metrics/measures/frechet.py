"""Frechet distance (FID): Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule."""

import numpy as np

from metrics.moments import Moments
from metrics.registry import register


@register("fid{n}_full", detector="inception", full=True, better={"": "lower"})
@register("fid{n}", detector="inception", num_real=50_000, better={"": "lower"})
def fid(real, generated, settings):
    """Frechet distance of Inception features; needs their moments."""
    return {"": frechet_distance(real.moments, generated.moments)}


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

    a b has the eigenvalues of the symmetric a^(1/2) b a^(1/2), which are real and not negative; a
    general matrix square root of a b can fail where a or b is singular, this cannot.
    """
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = root @ b @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    return float(np.sqrt(eigenvalues.clip(0)).sum())
