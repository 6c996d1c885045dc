"""Best-response constraint (BRC, Liu et al. 2022): G leads, D follows, and G's step knows it.

G minimises F, D minimises its own loss f. Differentiating F at D's best response to G takes the
inverse of a Hessian; the paper approximates that by the outer product of df/dD with itself, which
leaves one number: G follows the gradient of F + c f, with

    c = - <dF/dD, df/dD> / (<df/dD, df/dD> + eps)        held constant.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

EPS = 1e-8


def response_weight(
    F: torch.Tensor, f: torch.Tensor, weights: Sequence[torch.Tensor], limit: float | None = None
) -> torch.Tensor:
    """The number c above.

    Args:
        F: Objective of the leader G, a scalar with a graph to `weights`.
        f: Objective of the follower D, likewise; its fakes are not detached.
        weights: Parameters of D, requiring grad.
        limit: Keep c within +- this; None: no bound.

    Returns:
        Scalar tensor, detached; 0 where half precision made a gradient overflow.
    """
    leader = torch.autograd.grad(F, weights, retain_graph=True, materialize_grads=True)
    follower = torch.autograd.grad(f, weights, retain_graph=True, materialize_grads=True)
    none = torch.zeros([], dtype=f.dtype, device=f.device)
    shared = sum(((a * b).sum() for a, b in zip(leader, follower, strict=True)), none)
    squared = sum((b.square().sum() for b in follower), none)
    c = torch.nan_to_num(-shared / (squared + EPS), nan=0, posinf=0, neginf=0)
    return c if limit is None else c.clamp(-limit, limit)


@contextlib.contextmanager
def look_ahead(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[Callable[[], object]]
) -> Iterator[None]:
    """Context in which `net` is some optimizer steps further than before and after it.

    Args:
        net: The follower; parameters and buffers are restored exactly, and so is `optimizer`.
        optimizer: Its optimizer.
        steps: Iterable of functions without arguments; each takes one step.
    """
    tensors = [*net.parameters(), *net.buffers()]
    saved = [tensor.detach().clone() for tensor in tensors]
    state = copy.deepcopy(optimizer.state_dict())
    try:
        for step in steps:
            step()
        optimizer.zero_grad(set_to_none=True)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        optimizer.load_state_dict(state)
