"""The two stages of a run: a stage is a loss and the phases that it runs."""

from dataclasses import dataclass

import torch

from coopinit_patch import CoopInitLoss
from training.ada import AdaController
from training.loss import StyleGAN2Loss
from training.state import lazy_ratio

GRADIENT_LIMIT = 1e5


@dataclass(frozen=True)
class Phase:
    """One optimizer step on one network, taken every `interval` iterations."""

    name: str  # Gmain, Greg, Dmain, Dreg
    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    interval: int = 1


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
    G_main = Phase("Gmain", state.G, state.G_opt)
    D_main = Phase("Dmain", state.D, state.D_opt)
    phases = [G_main]
    if config.pl_weight > 0:
        phases.append(Phase("Greg", state.G, state.G_opt, config.g_reg_interval))
    phases.append(D_main)
    if config.gamma > 0:
        phases.append(Phase("Dreg", state.D, state.D_opt, config.d_reg_interval))
    ada = None
    if config.aug == "ada":
        ada = AdaController(state.augment_pipe.p, target=config.target, kimg=config.ada_kimg)
    adversarial = Stage(
        name="adversarial",
        log_prefix="Loss",
        loss=StyleGAN2Loss(
            state.G,
            state.D,
            augment=state.augment_pipe,
            adversarial=config.loss,
            gp_weight=config.gp_weight,
            observe_real=None if ada is None else ada.observe,
            r1_gamma=config.gamma,
            style_mixing_prob=config.style_mixing,
            pl_weight=config.pl_weight,
            report=report,
        ),
        phases=tuple(phases),
        lr_g=config.lr,
        lr_d=config.lr,
        ada=ada,
    )
    if config.coop_kimg == 0:
        return None, adversarial
    cooperative = Stage(
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
        phases=(G_main, D_main),
        lr_g=config.lr if config.coop_lr_g is None else config.coop_lr_g,
        lr_d=config.lr if config.coop_lr_d is None else config.coop_lr_d,
    )
    return cooperative, adversarial


def enter_stage(stage, config, state):
    """Set the learning rates of `stage`; networks and optimizer moments go on as they are."""
    state.G_opt.param_groups[0]["lr"] = stage.lr_g * lazy_ratio(config.g_reg_interval)
    state.D_opt.param_groups[0]["lr"] = stage.lr_d * lazy_ratio(config.d_reg_interval)


def run_phase(stage, phase, micro_batches, report):
    """One optimizer step of `phase`: gradients over all micro-batches, then Adam.

    Args:
        stage: The stage that `phase` belongs to.
        phase: What to train.
        micro_batches: Dicts with real_img, real_c, gen_z, gen_c.
        report: Function (name, value) for the gradient norm.
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
    report(f"{stage.log_prefix}/grad_norm/{phase.name}", flat.norm())
    # Half precision overflows now and then; the step goes on with what is finite.
    torch.nan_to_num(flat, nan=0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = gradient.view(p.shape)
    phase.optimizer.step()


def _gradient(p):
    return torch.zeros_like(p) if p.grad is None else p.grad
