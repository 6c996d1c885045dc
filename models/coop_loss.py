"""The loss of the cooperative stage, as settings ask for it."""

from typing import Any

from coopinit_patch import CoopInitLoss
from training.settings.config import TrainingConfig
from training.stages import Report


def build_coop_loss(config: TrainingConfig, G: Any, D: Any, report: Report) -> CoopInitLoss:
    """Algorithm 1 of CoopInit for a generator G(z, c) and a discriminator D(images, c)."""
    return CoopInitLoss(
        G,
        D,
        steps=config.coop_steps,
        step_size=config.coop_step_size,
        noise=config.coop_noise,
        noise_schedule=config.coop_noise_schedule,
        step_clip=config.coop_step_clip,
        clamp=config.coop_clamp,
        energy_l2=config.coop_energy_l2,
        report=report,
    )
