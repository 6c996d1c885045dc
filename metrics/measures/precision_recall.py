"""Improved precision and recall (Kynkaanniemi et al. 2019); density and coverage (Naeem et al.).

Kynkaanniemi, Karras, Laine, Lehtinen, Aila 2019, Improved Precision and Recall Metric for
Assessing Generative Models; Naeem, Oh, Uh, Choi, Yoo 2020, Reliable Fidelity and Diversity
Metrics for Generative Models. Distances are computed in blocks: no more than a given amount of
memory is used beside the features, whatever their number.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from metrics import MetricError
from metrics.registry import ComputeSettings, Values, register

if TYPE_CHECKING:
    import torch

    from metrics.features import Collected

# torch is imported inside functions: the registry must stay cheap to import.

PR_NEIGHBOURS = 3
DC_NEIGHBOURS = 5
_FLOATS_A_PAIR = 3  # alive at once for one pair of points: distances, a sum, a selection


@register(
    "pr{n}3_full",
    detector="vgg16",
    statistic="rows",
    num_real=200_000,
    full=True,
    better={"precision": "higher", "recall": "higher"},
)
@register(
    "pr{n}3",
    detector="vgg16",
    statistic="rows",
    num_real=50_000,
    better={"precision": "higher", "recall": "higher"},
)
def precision_recall_metric(
    real: "Collected", generated: "Collected", settings: ComputeSettings
) -> Values:
    """Precision and recall with three neighbours."""
    rows = real.require_rows(), generated.require_rows()
    precision, recall = precision_recall(*rows, PR_NEIGHBOURS, settings)
    return {"precision": precision, "recall": recall}


@register(
    "dc{n}5_full",
    detector="vgg16",
    statistic="rows",
    num_real=200_000,
    full=True,
    better={"density": "higher", "coverage": "higher"},
)
def density_coverage_metric(
    real: "Collected", generated: "Collected", settings: ComputeSettings
) -> Values:
    """Density and coverage with five neighbours."""
    rows = real.require_rows(), generated.require_rows()
    density, coverage = density_coverage(*rows, DC_NEIGHBOURS, settings)
    return {"density": density, "coverage": coverage}


def precision_recall(
    real: np.ndarray,
    generated: np.ndarray,
    k: int = PR_NEIGHBOURS,
    settings: ComputeSettings | None = None,
) -> tuple[float, float]:
    """Improved precision and recall (2019, equations 1 and 2).

    Precision is the share of generated points that lie within the ball of some real point, whose
    radius is the distance to its k-th nearest real neighbour; recall the reverse. Features are
    rounded to float16 first, as in the definition's implementation.

    Args:
        real: Features [N, D] of any real type.
        generated: Features [M, D].
        k: Which neighbour.
        settings: How to compute.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        MetricError: A set has no k neighbours, or is too large for float16.
    """
    pairs = _Distances(settings or ComputeSettings())
    points = {"real": pairs.prepare(real, k), "generated": pairs.prepare(generated, k)}
    shares = []
    for manifold, probes in (("real", "generated"), ("generated", "real")):
        radii = pairs.radii(points[manifold], k, f"radii of {manifold}")
        inside = pairs.count_balls(points[probes], points[manifold], radii, f"{probes} points")
        shares.append(float((inside > 0).double().mean()))
    return shares[0], shares[1]


def density_coverage(
    real: np.ndarray,
    generated: np.ndarray,
    k: int = DC_NEIGHBOURS,
    settings: ComputeSettings | None = None,
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, equations 3 and 4).

    Density is the mean number of real balls that a generated point lies in, divided by k; coverage
    the share of real balls with a generated point in them. Both sets are rounded to float16.

    Args:
        real: Features [N, D] of any real type.
        generated: Features [M, D].
        k: Which neighbour decides the radius of a ball.
        settings: How to compute.

    Returns:
        Density, which may be above 1, and coverage, in [0, 1].

    Raises:
        MetricError: The real set has no k neighbours, or one is too large for float16.
    """
    pairs = _Distances(settings or ComputeSettings())
    centres, probes = pairs.prepare(real, k), pairs.prepare(generated, 0)
    radii = pairs.radii(centres, k, "radii of real")
    inside = pairs.count_balls(probes, centres, radii, "density")
    nearest = pairs.smallest(centres, probes, 1, "coverage")[:, 0]
    density = float(inside.double().mean() / k)
    return density, float((nearest <= radii).double().mean())


class _Distances:
    """Squared Euclidean distances between two sets, one block of pairs at a time."""

    def __init__(self, settings: ComputeSettings) -> None:
        self._settings = settings

    def prepare(self, rows: np.ndarray, k: int) -> "torch.Tensor":
        """Features [N, D] as float16 on the CPU.

        Raises:
            MetricError: There are not more than k, or they are too large.
        """
        import torch

        if len(rows) <= k:
            raise MetricError(
                f"{k} nearest neighbours need at least {k + 1} images on either side, "
                f"not {len(rows)}"
            )
        half = torch.from_numpy(np.ascontiguousarray(rows)).half()
        if not half.isfinite().all():
            raise MetricError("the features are too large for float16, in which they are compared")
        return half

    def radii(self, points: "torch.Tensor", k: int, title: str) -> "torch.Tensor":
        """Squared distance float32 [N] of every point to its k-th nearest other one."""
        return self.smallest(points, points, k + 1, title)[:, k]  # the first is the point itself

    def smallest(
        self, points: "torch.Tensor", others: "torch.Tensor", k: int, title: str
    ) -> "torch.Tensor":
        """The k smallest squared distances float32 [N, k] from points to others, ascending."""
        import torch

        found = []
        for near in self._rows(points, len(others), title):
            best = torch.empty([len(near), 0], device=near.device)
            for block, _ in self._blocks(near, others):
                block = block.topk(min(k, block.shape[1]), largest=False).values
                best = torch.cat([best, block], dim=1)
                best = best.topk(min(k, best.shape[1]), largest=False).values
            found.append(best.sort(dim=1).values.cpu())
        return torch.cat(found)

    def count_balls(
        self, probes: "torch.Tensor", centres: "torch.Tensor", radii: "torch.Tensor", title: str
    ) -> "torch.Tensor":
        """How many balls hold each probe.

        Args:
            probes: [M, D].
            centres: Of the balls, [N, D].
            radii: Of the balls, squared, [N].
            title: Of the progress bar.

        Returns:
            int64 [M] on the CPU.
        """
        import torch

        counts = []
        for near in self._rows(probes, len(centres), title):
            count = torch.zeros(len(near), dtype=torch.int64, device=near.device)
            for block, columns in self._blocks(near, centres):
                count += (block <= radii[columns].to(block.device)).sum(dim=1)
            counts.append(count.cpu())
        return torch.cat(counts)

    def _rows(
        self, points: "torch.Tensor", num_others: int, title: str
    ) -> "Iterator[torch.Tensor]":
        """Portions [n, D] of points, on the device in float32."""
        rows, _ = block_shape(len(points), num_others, points.shape[1], self._settings.memory_bytes)
        starts = range(0, len(points), rows)
        progress: Callable[[Iterable, str], Iterable] = self._settings.progress
        for start in progress(starts, title):
            yield points[start : start + rows].to(self._settings.device).float()

    def _blocks(
        self, near: "torch.Tensor", others: "torch.Tensor"
    ) -> "Iterator[tuple[torch.Tensor, slice]]":
        """Squared distances [n, m] from the points near to portions of others, with their places.

        Computed from products, |x|^2 + |y|^2 - 2 x.y: fast, and exact enough for features that
        were rounded to eleven bits.
        """
        _, columns = block_shape(
            len(near), len(others), others.shape[1], self._settings.memory_bytes, len(near)
        )
        square = near.square().sum(dim=1, keepdim=True)
        for start in range(0, len(others), columns):
            far = others[start : start + columns].to(near.device).float()
            block = (near @ far.T).mul_(-2).add_(square).add_(far.square().sum(dim=1))
            yield block.clamp_(min=0), slice(start, start + columns)


def block_shape(
    num_rows: int, num_columns: int, dim: int, memory_bytes: int, rows: int | None = None
) -> tuple[int, int]:
    """Rows and columns of a block of distances that fits into the memory, at least 1 x 1.

    A block costs its pairs and its two portions of features, all float32.

    Args:
        num_rows: Points of the first set.
        num_columns: Points of the second set.
        dim: Length of a point.
        memory_bytes: What a block may take.
        rows: Number of rows, where it is settled already.
    """
    budget = max(memory_bytes // 4, 1)
    if rows is None:
        # About square: every portion of features is then used often.
        length = int((np.sqrt(dim**2 + _FLOATS_A_PAIR * budget) - dim) / _FLOATS_A_PAIR)
        rows = max(min(length, num_rows), 1)
    columns = (budget - rows * dim) // (rows * _FLOATS_A_PAIR + dim)
    return rows, max(min(columns, num_columns), 1)
