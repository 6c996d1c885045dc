"""Running statistics of named quantities, kept on the device until somebody asks."""

import math
from collections.abc import Mapping

import torch

from torch_utils import distributed


class TrainingStats:
    """Counts, means and standard deviations by name, since the last `collect()`.

    `report()` never synchronises with the GPU; `collect()` and `mean()` do. Where there are several
    processes they call `collect()` and `state_dict()` together, and get what all of them reported.
    """

    def __init__(self) -> None:
        self._moments: dict[str, torch.Tensor] = {}  # float64 [count, sum, sum of squares] by name

    def report(self, name: str, value: torch.Tensor | float) -> None:
        """Add every element of `value` (tensor or number) to the statistics called `name`."""
        value = torch.as_tensor(value, dtype=torch.float64).detach().flatten()
        count = torch.full_like(value[:1], value.numel()).sum()
        moments = torch.stack([count, value.sum(), value.square().sum()])
        if name not in self._moments:
            self._moments[name] = moments
            return
        known = self._moments[name]
        if known.device.type == "cpu":  # plain numbers, or what a checkpoint held
            known = known.to(moments.device)
        self._moments[name] = known + moments.to(known.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The moments so far, of all processes: float64 [3] by name, on the CPU."""
        merged: dict[str, torch.Tensor] = {}
        if gathered := distributed.gather({k: v.cpu() for k, v in self._moments.items()}):
            merged = dict(gathered[0])
            for moments in gathered[1:]:
                for name, value in moments.items():
                    merged[name] = merged[name] + value if name in merged else value
        return distributed.broadcast(merged)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict()` returned: on rank 0, which holds it for all of them."""
        self._moments = dict(state) if distributed.is_rank0() else {}

    def mean(self, name: str) -> float:
        """Mean of `name` so far, as a float; NaN where nothing was reported."""
        if name not in self._moments:
            return math.nan
        count, total, _ = self._moments[name].tolist()
        return total / count if count else math.nan

    def collect(self) -> dict[str, dict[str, float]]:
        """All statistics by name, {"num": int, "mean": float, "std": float}; starts afresh."""
        collected = {}
        for name, moments in self.state_dict().items():
            count, total, squares = moments.tolist()
            mean = total / count if count else math.nan
            variance = squares / count - mean * mean if count else math.nan
            # Rounding can make the variance of a constant slightly negative.
            std = math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan
            collected[name] = {"num": int(count), "mean": mean, "std": std}
        self._moments = {}
        return collected
