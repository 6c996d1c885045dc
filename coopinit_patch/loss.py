"""Cooperative learning of a generator and a discriminator read as an energy-based model."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from coopinit_patch.langevin import langevin, noise_levels


def mcmc_teaching_loss(generated: torch.Tensor, revised: torch.Tensor) -> torch.Tensor:
    """Step G2 of Algorithm 1: |x - G(z)|^2 of each sample, summed over pixels; shape [N]."""
    return (revised - generated).square().flatten(1).sum(dim=1)


def energy_loss(
    real_scores: torch.Tensor, revised_scores: torch.Tensor, l2: float = 0.0
) -> torch.Tensor:
    """Step D2: the negative of equation 3's estimate, plus an optional L2 on the scores.

    Args:
        real_scores: D of real images [N, 1].
        revised_scores: D of the images revised by Langevin dynamics [N, 1].
        l2: Weight of the squared scores, which anchors the otherwise free level of the energy
            (Du and Mordatch 2019).

    Returns:
        The loss of each pair of samples [N, 1].
    """
    loss = revised_scores - real_scores
    if l2 > 0:
        loss = loss + l2 * (real_scores.square() + revised_scores.square())
    return loss


def no_report(name: str, value: Any) -> None:
    """Discard a value: what `CoopInitLoss` uses where nobody listens."""


class CoopInitLoss:
    """Algorithm 1 of the CoopInit paper, phase by phase, for trainers of the StyleGAN family.

    At phase Gmain the generator makes images once, a Langevin chain on D revises them, the
    gradient of `mcmc_teaching_loss` is added to G and the revised images are kept. At phase Dmain
    they are used and the gradient of `energy_loss` is added to D. The Gmain calls of an
    iteration must therefore be followed by as many Dmain calls. Regularisation phases do nothing;
    no augmentation, style mixing, R1 or path length belongs to this stage.

    Args:
        G: Function (z [N, z_dim], c [N, c_dim]) -> images [N, C, H, W].
        D: Function (images [N, C, H, W], c [N, c_dim]) -> scores [N, 1].
        steps: Length T of the chain.
        step_size: eta.
        noise: Standard deviation of the first step, or "literal" for sqrt(2 eta) at every step.
        noise_schedule: "linear" (falls to zero) or "constant".
        step_clip: Shorten each sample's gradient moves to this root mean square, or None.
        clamp: Keep the chain in [-clamp, clamp] after every step, or None.
        energy_l2: Weight of the squared scores in D's loss.
        report: Function (name, tensor of values) called with what a run should log.
        generator: torch.Generator of the chain's noise; None: torch's default one.
    """

    def __init__(
        self,
        G: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        D: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        steps: int = 10,
        step_size: float = 1.0,
        noise: float | str = 0.01,
        noise_schedule: str = "linear",
        step_clip: float | None = None,
        clamp: float | None = None,
        energy_l2: float = 0.0,
        report: Callable[[str, torch.Tensor], object] = no_report,
        generator: torch.Generator | None = None,
    ) -> None:
        self.G = G
        self.D = D
        self.step_size = step_size
        self.noise_stds = noise_levels(steps, step_size, noise, noise_schedule)
        self.bounds = {"step_clip": step_clip, "clamp": clamp}
        self.energy_l2 = energy_l2
        self.report = report
        self.generator = generator
        # (images, labels) of each Gmain that waits for its Dmain
        self._revised: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def accumulate_gradients(
        self,
        phase: str,
        real_img: torch.Tensor,
        real_c: torch.Tensor,
        gen_z: torch.Tensor,
        gen_c: torch.Tensor,
        gain: float = 1,
        **_: Any,
    ) -> None:
        """Add the gradient of one micro-batch to G (Gmain, Gboth) or to D (Dmain, Dboth).

        Args:
            phase: Name of the phase, as in StyleGAN2-ADA and StyleGAN3; others do nothing.
            real_img: Real images [N, C, H, W], in [-1, 1].
            real_c: Their labels [N, c_dim].
            gen_z: Latents [N, z_dim] of this phase; used at Gmain.
            gen_c: Labels [N, c_dim] that go with them.
            gain: Factor on the loss.
        """
        if phase in ("Gmain", "Gboth"):
            self._teach_generator(gen_z, gen_c, gain)
        elif phase in ("Dmain", "Dboth"):
            self._update_discriminator(real_img, real_c, gain)

    def _teach_generator(self, gen_z: torch.Tensor, gen_c: torch.Tensor, gain: float) -> None:
        generated = self.G(gen_z, gen_c)
        revised = langevin(
            lambda x: self.D(x, gen_c),
            generated,
            step_size=self.step_size,
            noise_stds=self.noise_stds,
            generator=self.generator,
            **self.bounds,
        )
        loss = mcmc_teaching_loss(generated, revised)
        loss.mean().mul(gain).backward()
        self._revised.append((revised, gen_c))
        loss = loss.detach()
        self.report("Loss/G/loss", loss)
        self.report("Coop/displacement", (loss / generated[0].numel()).sqrt())

    def _update_discriminator(
        self, real_img: torch.Tensor, real_c: torch.Tensor, gain: float
    ) -> None:
        revised, revised_c = self._revised.popleft()
        revised_scores = self.D(revised, revised_c)
        real_scores = self.D(real_img.detach(), real_c)
        loss = energy_loss(real_scores, revised_scores, self.energy_l2)
        loss.mean().mul(gain).backward()
        real_scores, revised_scores = real_scores.detach(), revised_scores.detach()
        self.report("Loss/scores/real", real_scores)
        self.report("Loss/scores/fake", revised_scores)
        self.report("Loss/signs/real", real_scores.sign())
        self.report("Loss/signs/fake", revised_scores.sign())
        self.report("Loss/D/loss", loss.detach())
        self.report("Coop/energy_gap", real_scores - revised_scores)
