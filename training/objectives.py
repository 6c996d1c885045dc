"""Adversarial losses and regularisers: tensors in, the loss of each sample out.

A new loss is one entry of `ADVERSARIAL_LOSSES`; nothing here knows of networks, phases or logs.
Scores are the raw logits of D, shape [N, 1].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import relu, softplus

# Where D's loss of fakes is the negative of G's, the constraint only rescales G's gradient.
MIRRORED_LIMIT = 0.1


class ConsistencyWeights(NamedTuple):
    """Settings of zCR; CoopInit's Table 6 does not say which it used, these are ours."""

    G: float = 0.02
    D: float = 0.2
    noise: float = 0.1  # standard deviation by which latents move


ScoreFn = Callable[[torch.Tensor], torch.Tensor]  # scores [N, 1] -> loss [N, 1]


class AdversarialLoss(NamedTuple):
    """Three functions of scores [N, 1] -> loss [N, 1], each minimised by the network named.

    `gradient_penalty`: D's loss includes `gradient_penalty()`. `response_limit`: usual bound on
    the weight of the best-response constraint (`best_response.response_weight()`).
    """

    D_real: ScoreFn
    D_fake: ScoreFn
    G_fake: ScoreFn
    gradient_penalty: bool = False
    # Where D's gradient all but vanishes, c explodes: without a bound the non-saturating loss was
    # seen to reach 60, with either sign, within 13 kimg on digits.
    response_limit: float = 1.0


def _wasserstein(**kwargs: Any) -> AdversarialLoss:
    """Difference of mean scores (Arjovsky et al. 2017; CoopInit, equation 11)."""
    return AdversarialLoss(
        D_real=lambda scores: -scores,
        D_fake=lambda scores: scores,
        G_fake=lambda scores: -scores,
        response_limit=MIRRORED_LIMIT,
        **kwargs,
    )


ADVERSARIAL_LOSSES = {
    # Non-saturating loss (Goodfellow et al. 2014), the default of StyleGAN2.
    "ns": AdversarialLoss(
        D_real=lambda scores: softplus(-scores),
        D_fake=lambda scores: softplus(scores),
        G_fake=lambda scores: softplus(-scores),
    ),
    # Hinge loss (Lim and Ye 2017; CoopInit, equations 13 and 14).
    "hinge": AdversarialLoss(
        D_real=lambda scores: relu(1 - scores),
        D_fake=lambda scores: relu(1 + scores),
        G_fake=lambda scores: -scores,
        response_limit=MIRRORED_LIMIT,
    ),
    "wgan": _wasserstein(),
    # Gulrajani et al. 2017; CoopInit, equation 12.
    "wgan-gp": _wasserstein(gradient_penalty=True),
}


def gradient_penalty(mixed_scores: torch.Tensor, mixed_img: torch.Tensor) -> torch.Tensor:
    """Squared distance of D's gradient norm from one (Gulrajani et al. 2017, without lambda).

    Args:
        mixed_scores: Scores [N, 1] computed from `mixed_img`.
        mixed_img: Images [N, C, H, W] on the segments between real and generated ones, requiring
            grad.

    Returns:
        Penalty of each sample [N], differentiable.
    """
    (gradient,) = torch.autograd.grad(mixed_scores.sum(), mixed_img, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square()


def r1_penalty(real_scores: torch.Tensor, real_img: torch.Tensor) -> torch.Tensor:
    """Squared gradient norm of D at real images (Mescheder et al. 2018, equation 9, without gamma).

    Args:
        real_scores: Scores [N, 1] computed from `real_img`.
        real_img: Images [N, C, H, W] that require grad.

    Returns:
        Penalty of each sample [N], differentiable.
    """
    (gradient,) = torch.autograd.grad(real_scores.sum(), real_img, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def latent_consistency(output: torch.Tensor, moved_output: torch.Tensor) -> torch.Tensor:
    """Mean square by which an output changes when its latent moves a little (zCR).

    Zhao et al. 2020, "Improved consistency regularization for GANs", section 3.2. The norm there
    is read as a mean over elements, so that the weights do not depend on the resolution.

    Args:
        output: Images or scores [N, ...] for latents z.
        moved_output: The same for z + noise.

    Returns:
        Change of each sample [N], differentiable.
    """
    return (output - moved_output).square().flatten(1).mean(dim=1)


def path_lengths(images: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Length of the Jacobian-vector product of G in w (StyleGAN2, section 3.2 and appendix B).

    Args:
        images: Generated images [N, C, H, W].
        ws: The latents [N, num_ws, w_dim] they were made from, requiring grad.
        noise: Unit normal noise of the shape of `images`; scaled here by 1 / sqrt(H * W).

    Returns:
        Lengths [N], differentiable.
    """
    height, width = images.shape[2:]
    projected = (images * noise).sum() / (height * width) ** 0.5
    (gradient,) = torch.autograd.grad(projected, ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
