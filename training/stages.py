"""The two stages of a run: a stage is a loss and the phases that it runs."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from coopinit_patch import CoopInitLoss
from coopinit_patch.loss import no_report
from torch_utils.distributed import all_reduce_mean
from training.ada import AdaController
from training.best_response import look_ahead
from training.loss import StyleGAN2Loss
from training.objectives import ConsistencyWeights

GRADIENT_LIMIT = 1e5


def as_it_is(draw):
    """Context of a phase that needs no preparation."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Phase:
    """One optimizer step on one network, taken every `interval` iterations."""

    name: str  # Gmain, Greg, Dmain, Dreg; Gboth and Dboth
    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    interval: int = 1
    # Function of a function that draws micro-batches; returns the context to run in.
    context: Callable = as_it_is


@dataclass(frozen=True)
class Stage:
    """A loss, its phases in order, and the learning rates that hold while it runs."""

    name: str  # as the progress bar shows it
    log_prefix: str
    loss: object  # has accumulate_gradients() of training.loss.Loss
    phases: tuple[Phase, ...]
    lr_g: float
    lr_d: float
    ada: AdaController | None = None  # steers the augmentation probability


def build_stages(config, state, report):
    """The cooperative and the adversarial stage over the same networks and optimizers.

    Returns:
        (cooperative Stage or None, adversarial Stage).
    """
    cooperative = _cooperative(config, state, report) if config.coop_kimg > 0 else None
    return cooperative, _adversarial(config, state, report)


def _cooperative(config, state, report):
    lr_g, lr_d = config.coop_learning_rates
    return Stage(
        name="cooperative",
        log_prefix="Coop",
        loss=CoopInitLoss(
            state.G,
            state.D,
            steps=config.coop_steps,
            step_size=config.coop_step_size,
            noise=config.coop_noise,
            noise_schedule=config.coop_noise_schedule,
            step_clip=config.coop_step_clip,
            clamp=config.coop_clamp,
            energy_l2=config.coop_energy_l2,
            report=report,
        ),
        phases=(Phase("Gmain", state.G, state.G_opt), Phase("Dmain", state.D, state.D_opt)),
        lr_g=lr_g,
        lr_d=lr_d,
    )


def _adversarial(config, state, report):
    ada = None
    if config.aug == "ada":
        ada = AdaController(state.augment_pipe.p, target=config.target, kimg=config.ada_kimg)
    G_phases, D_phases = _adversarial_phases(config, state)
    if config.brc_lookahead > 0:
        rehearsal = _lookahead(config, state, D_phases[0])
        G_phases = [replace(G_phases[0], context=rehearsal), *G_phases[1:]]
    lr_g, lr_d = config.learning_rates
    return Stage(
        name="adversarial",
        log_prefix="Loss",
        loss=_adversarial_loss(
            config, state, report=report, observe_real=None if ada is None else ada.observe
        ),
        phases=(*G_phases, *D_phases),
        lr_g=lr_g,
        lr_d=lr_d,
        ada=ada,
    )


def _adversarial_loss(config, state, **listeners):
    zcr = ConsistencyWeights(config.zcr_g, config.zcr_d, config.zcr_noise)
    return StyleGAN2Loss(
        state.G,
        state.D,
        augment=state.augment_pipe,
        adversarial=config.loss,
        gp_weight=config.gp_weight,
        r1_gamma=config.gamma,
        style_mixing_prob=config.style_mixing,
        pl_weight=config.pl_weight,
        zcr=zcr if config.zcr else None,
        brc=config.brc,
        brc_limit=config.brc_limit,
        **listeners,
    )


def _adversarial_phases(config, state):
    """Phases of G and of D: main and regulariser, in one (Gboth, Dboth) unless they are lazy."""
    kinds = [
        ("G", state.G, state.G_opt, config.pl_weight, config.g_reg_interval),
        ("D", state.D, state.D_opt, config.gamma, config.d_reg_interval),
    ]
    for name, net, optimizer, weight, interval in kinds:
        if weight > 0 and config.lazy:
            main, reg = (f"{name}main", 1), (f"{name}reg", interval)
            yield [Phase(phase, net, optimizer, every) for phase, every in (main, reg)]
        else:
            yield [Phase(f"{name}both" if weight > 0 else f"{name}main", net, optimizer)]


def _lookahead(config, state, phase):
    """Context, for a phase of G, in which D is some steps of its `phase` ahead.

    The steps are taken back, and leave no trace in statistics, in ADA or in G's mean of w.
    """
    loss = _adversarial_loss(config, state, report=no_report, moves_w_avg=False)
    stage = Stage("look-ahead", "Loss", loss, (phase,), *config.learning_rates)

    def within(draw):
        step = lambda: run_phase(stage, phase, draw(), no_report)  # noqa: E731
        return look_ahead(phase.net, phase.optimizer, [step] * config.brc_lookahead)

    return within


def enter_stage(stage, config, state):
    """Set the learning rates of `stage`; networks and optimizer moments go on as they are."""
    lr_g, lr_d = stage.lr_g * state.lr_factor, stage.lr_d * state.lr_factor
    state.G_opt.param_groups[0]["lr"] = lr_g * config.lazy_ratio(config.g_reg_interval)
    state.D_opt.param_groups[0]["lr"] = lr_d * config.lazy_ratio(config.d_reg_interval)


def run_phase(stage, phase, micro_batches, report):
    """One optimizer step of `phase`: gradients over all micro-batches, then Adam.

    Args:
        stage: The stage that `phase` belongs to.
        phase: What to train.
        micro_batches: Dicts with real_img, real_c, gen_z, gen_c.
        report: Function (name, value) for the gradient norm, and whether it is finite.
    """
    phase.net.requires_grad_(True)
    phase.optimizer.zero_grad(set_to_none=True)
    # A regulariser that runs every k-th iteration counts k times; accumulation averages.
    gain = phase.interval / len(micro_batches)
    for batch in micro_batches:
        stage.loss.accumulate_gradients(phase=phase.name, gain=gain, **batch)
    phase.net.requires_grad_(False)

    # A parameter that a regulariser does not reach has a zero gradient: Adam's moments decay as
    # they would, and every process has the same layout.
    parameters = list(phase.net.parameters())
    flat = torch.cat([_gradient(p).flatten() for p in parameters])
    all_reduce_mean(flat)  # over all processes: each has seen its share of the batch
    norm = flat.norm()
    report(f"{stage.log_prefix}/grad_norm/{phase.name}", norm)
    report(f"{stage.log_prefix}/nonfinite/{phase.name}", ~norm.isfinite())
    # Half precision overflows now and then; the step goes on with what is finite.
    torch.nan_to_num(flat, nan=0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view(p.shape)
    phase.optimizer.step()


def _gradient(p):
    return torch.zeros_like(p) if p.grad is None else p.grad
