"""The controller of adaptive discriminator augmentation (Karras et al. 2020a, section 3)."""

from collections.abc import Mapping

import torch

from torch_utils.distributed import all_reduce_sum, is_rank0

UPDATE_INTERVAL = 4  # iterations


class AdaController:
    """Moves the augmentation probability p towards where D's overfitting meets a target.

    Overfitting is measured by r_t = E[sign(D(real))] (equation 1). Every `UPDATE_INTERVAL`
    iterations p moves by a fixed step up or down, so that it crosses [0, 1] in `kimg` thousand
    images. Everything stays on the device; nothing waits for the GPU.

    Args:
        p: The probability, a scalar tensor that is changed in place.
        target: The r_t to hold, between 0 and 1.
        kimg: Thousands of images for p to go from 0 to 1.
    """

    def __init__(self, p: torch.Tensor, *, target: float, kimg: float) -> None:
        self._p = p
        self._target = target
        self._kimg = kimg
        self._signs = torch.zeros([2], device=p.device)  # count and sum since the last update

    def observe(self, real_scores: torch.Tensor) -> None:
        """Take scores of augmented real images [N, 1] into account."""
        signs = real_scores.detach().sign().flatten()
        self._signs += torch.stack([torch.ones_like(signs).sum(), signs.sum()])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What all processes observed since the last update; all of them call this together.

        p belongs to the augmentation pipe.
        """
        return {"signs": all_reduce_sum(self._signs.clone())}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict()` returned: on rank 0, which holds it for all of them."""
        self._signs.copy_(state["signs"] if is_rank0() else torch.zeros_like(self._signs))

    def update(self, nimg: int) -> None:
        """Move p once, `nimg` images after the last time."""
        count, total = all_reduce_sum(self._signs)
        step = nimg / (self._kimg * 1000)
        direction = (total / count.clamp(min=1) - self._target).sign()
        # Nothing observed says nothing.
        direction = torch.where(count > 0, direction, torch.zeros_like(direction))
        self._p.copy_((self._p + direction * step).clamp(min=0))
        self._signs.zero_()
