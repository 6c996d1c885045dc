"""Running statistics of named quantities, kept on the device until somebody asks."""

import math

import torch


class TrainingStats:
    """Counts, means and standard deviations by name, since the last `collect()`.

    `report()` never synchronises with the GPU; `collect()` and `mean()` do.
    """

    def __init__(self):
        self._moments = {}  # name -> float64 tensor [count, sum, sum of squares]

    def report(self, name, value):
        """Add every element of `value` (tensor or number) to the statistics called `name`."""
        value = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
        count = torch.full_like(value[:1], value.numel()).sum()
        moments = torch.stack([count, value.sum(), value.square().sum()])
        if name in self._moments:
            self._moments[name] += moments.to(self._moments[name].device)
        else:
            self._moments[name] = moments

    def mean(self, name):
        """Mean of `name` so far, as a float; NaN where nothing was reported."""
        if name not in self._moments:
            return math.nan
        count, total, _ = self._moments[name].tolist()
        return total / count if count else math.nan

    def collect(self):
        """All statistics by name, {"num": int, "mean": float, "std": float}; starts afresh."""
        collected = {}
        for name, moments in self._moments.items():
            count, total, squares = moments.tolist()
            mean = total / count if count else math.nan
            variance = squares / count - mean * mean if count else math.nan
            # Rounding can make the variance of a constant slightly negative.
            std = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
            collected[name] = {"num": int(count), "mean": mean, "std": std}
        self._moments = {}
        return collected
