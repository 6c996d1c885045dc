"""A stage is a loss and the phases that it runs; a phase is one optimizer step."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from torch_utils.distributed import all_reduce_mean

GRADIENT_LIMIT = 1e5

MicroBatch = Mapping[str, torch.Tensor]  # arguments of `Loss.accumulate_gradients`
Report = Callable[[str, Any], None]  # takes the name of a statistic and its values


class Loss(Protocol):
    """What a stage trains with: the protocol of StyleGAN2-ADA, called by keyword.

    Latent models get `real_img` [N, C, H, W] in [-1, 1], `real_c` [N, c_dim], `gen_z` [N, z_dim],
    N(0, 1), and `gen_c` [N, c_dim], the labels of the images to generate; a family may draw other
    things (`Model.micro_batches`).
    """

    @property
    def accumulate_gradients(self) -> Callable[..., None]:
        """Add the gradient of one micro-batch to the networks that a phase trains.

        Args:
            phase: Name of the phase: Gmain, Greg, Dmain or Dreg; Gboth and Dboth are main and
                regulariser in one.
            gain: Factor on the loss.
            batch: The micro-batch, item by item.
        """
        ...


def as_it_is(draw: Callable[[], Sequence[MicroBatch]]) -> contextlib.AbstractContextManager[Any]:
    """Context of a phase that needs no preparation."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Phase:
    """One step of the optimizers of some networks, taken every `interval` iterations.

    `gain` is the factor on its loss; None: the interval, so that a regulariser which runs every
    k-th iteration counts k times. `context` is a function of a function that draws micro-batches,
    and returns the context to run in.
    """

    name: str
    nets: Mapping[str, torch.nn.Module]
    optimizers: tuple[torch.optim.Optimizer, ...]
    interval: int = 1
    offset: int = 0
    gain: float | None = None
    context: Callable[[Callable[[], Sequence[MicroBatch]]], Any] = as_it_is

    def is_due(self, iteration: int) -> bool:
        """Whether the phase runs in this iteration, counted from 0."""
        return iteration % self.interval == self.offset

    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of all its networks."""
        return [parameter for net in self.nets.values() for parameter in net.parameters()]


def constant(nimg: int) -> float:
    """Schedule of learning rates that stay as they are."""
    return 1.0


@dataclass(frozen=True)
class Stage:
    """A loss, its phases in order, and the learning rates that hold while it runs."""

    name: str  # as the progress bar shows it
    log_prefix: str
    loss: Loss
    phases: tuple[Phase, ...]
    learning_rates: Mapping[str, float]  # by name of the optimizer
    schedule: Callable[[int], float] = constant  # factor on them, by the real images seen so far
    adaptive: bool = False  # whether the probability of augmentations follows D's overfitting

    @property
    def nets(self) -> dict[str, torch.nn.Module]:
        """The networks that its phases train, by name."""
        return {name: net for phase in self.phases for name, net in phase.nets.items()}


def run_phase(
    stage: Stage, phase: Phase, micro_batches: Sequence[MicroBatch], report: Report
) -> None:
    """One optimizer step of `phase`: gradients over all micro-batches, then Adam.

    Args:
        stage: The stage that `phase` belongs to.
        phase: What to train.
        micro_batches: What the loss of the stage takes.
        report: Called with the gradient norm, and whether it is finite.
    """
    for net in phase.nets.values():
        net.requires_grad_(True)
    for optimizer in phase.optimizers:
        optimizer.zero_grad(set_to_none=True)
    # Accumulation averages.
    gain = (phase.interval if phase.gain is None else phase.gain) / len(micro_batches)
    for batch in micro_batches:
        stage.loss.accumulate_gradients(phase=phase.name, gain=gain, **batch)
    for net in phase.nets.values():
        net.requires_grad_(False)

    # A parameter that a regulariser does not reach has a zero gradient: Adam's moments decay as
    # they would, and every process has the same layout.
    parameters = phase.parameters()
    flat = torch.cat([_gradient(p).flatten() for p in parameters])
    all_reduce_mean(flat)  # each process has seen its share of the batch
    norm = flat.norm()
    report(f"{stage.log_prefix}/grad_norm/{phase.name}", norm)
    report(f"{stage.log_prefix}/nonfinite/{phase.name}", ~norm.isfinite())
    # Half precision overflows now and then; the step is taken with what is finite.
    torch.nan_to_num(flat, nan=0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view(p.shape)
    for optimizer in phase.optimizers:
        optimizer.step()


def _gradient(p: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad
