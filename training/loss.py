"""The adversarial stage: StyleGAN2's losses and regularisers, phase by phase."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch

from torch_utils.distributed import all_reduce_mean
from training.best_response import response_weight
from training.networks import Generator
from training.objectives import (
    ADVERSARIAL_LOSSES,
    ConsistencyWeights,
    gradient_penalty,
    latent_consistency,
    path_lengths,
    r1_penalty,
)


@contextlib.contextmanager
def gradients_through(net: torch.nn.Module) -> Iterator[None]:
    """Context in which graphs reach the weights of a network that is not being trained."""
    net.requires_grad_(True)
    try:
        yield
    finally:
        net.requires_grad_(False)


class MovedLatents:
    """Latents moved a little, and the random numbers that are drawn from now on.

    Args:
        z: Latents [N, z_dim].
        noise: Standard deviation of the move.
    """

    def __init__(self, z: torch.Tensor, noise: float) -> None:
        self.z = z + noise * torch.randn_like(z)
        self._devices = [z.device] if z.is_cuda else []
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextlib.contextmanager
    def replay_rng(self) -> Iterator[None]:
        """Context in which those random numbers are drawn once more."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


class StyleGAN2Loss:
    """Non-saturating (or another adversarial) loss and the regularisers that go with it.

    Args:
        G: Generator, with its parts `mapping` and `synthesis`.
        D: Function (images [N, C, H, W], labels [N, c_dim]) -> logits [N, 1].
        augment: Function on image batches applied before D sees them, or None.
        adversarial: Key of `ADVERSARIAL_LOSSES`.
        gp_weight: Weight lambda of the gradient penalty, for a loss that has one.
        observe_real: Function called with D's scores of real images (adaptive augmentation).
        r1_gamma: Weight of R1; 0 turns it off.
        style_mixing_prob: Probability that a sample mixes the styles of two latents.
        pl_weight: Weight of path length regularisation; 0 turns it off.
        pl_decay: Share by which the running mean of path lengths moves a step.
        pl_batch_shrink: Path lengths are computed on N / this samples.
        zcr: `ConsistencyWeights` of latent consistency regularisation, or None.
        brc: G's step accounts for D's best response (`best_response`). D's loss is there the
            adversarial one without R1 and zCR; c is computed for each micro-batch.
        brc_limit: Bound on c; None: that of the adversarial loss.
        moves_w_avg: Whether generating images moves G's mean of w.
        report: Function (name, tensor of values) called with what a run should log.
    """

    def __init__(
        self,
        G: Generator,
        D: torch.nn.Module,
        *,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
        adversarial: str = "ns",
        gp_weight: float = 10.0,
        observe_real: Callable[[torch.Tensor], object] | None = None,
        r1_gamma: float = 10.0,
        style_mixing_prob: float = 0.9,
        pl_weight: float = 2.0,
        pl_decay: float = 0.01,
        pl_batch_shrink: int = 2,
        zcr: ConsistencyWeights | None = None,
        brc: bool = False,
        brc_limit: float | None = None,
        moves_w_avg: bool = True,
        report: Callable[[str, torch.Tensor], object],
    ) -> None:
        self.G = G
        self.D = D
        self.augment = augment
        self.objective = ADVERSARIAL_LOSSES[adversarial]
        self.gp_weight = gp_weight
        self.observe_real = observe_real
        self.r1_gamma = r1_gamma
        self.style_mixing_prob = style_mixing_prob
        self.pl_weight = pl_weight
        self.pl_decay = pl_decay
        self.pl_batch_shrink = pl_batch_shrink
        self.zcr = zcr
        self.brc = brc
        self.brc_limit = self.objective.response_limit if brc_limit is None else brc_limit
        self.moves_w_avg = moves_w_avg
        self.pl_mean = torch.zeros([], device=next(G.parameters()).device)
        self.report = report

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The running mean of path lengths."""
        return {"pl_mean": self.pl_mean}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_dict()` returned."""
        self.pl_mean.copy_(state["pl_mean"])

    def accumulate_gradients(
        self,
        *,
        phase: str,
        real_img: torch.Tensor,
        real_c: torch.Tensor,
        gen_z: torch.Tensor,
        gen_c: torch.Tensor,
        gain: float,
    ) -> None:
        """Fulfils `training.stages.Loss`."""
        if phase in ("Gmain", "Gboth"):
            self._generator_main(gen_z, gen_c, real_img, real_c, gain)
        if phase in ("Greg", "Gboth") and self.pl_weight > 0:
            self._path_length(gen_z, gen_c, gain)
        if phase in ("Dmain", "Dboth"):
            fake_img, fake_loss = self._discriminator_fake(gen_z, gen_c, gain)
            regularise = phase == "Dboth" and self.r1_gamma > 0
            real_loss = self._discriminator_real(real_img, real_c, gain, main=True, r1=regularise)
            self.report("Loss/D/loss", fake_loss + real_loss)
            if self.objective.gradient_penalty:
                penalty = self._gradient_penalty(real_img, fake_img, real_c)
                penalty.mean().mul(gain).backward()
        if phase == "Dreg" and self.r1_gamma > 0:
            self._discriminator_real(real_img, real_c, gain, main=False, r1=True)

    def _generate(
        self, z: torch.Tensor, c: torch.Tensor, skip_w_avg_update: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and their ws; with style mixing, later styles may come from another latent."""
        skip_w_avg_update = skip_w_avg_update or not self.moves_w_avg
        ws = self.G.mapping(z, c, skip_w_avg_update=skip_w_avg_update)
        num_ws = ws.shape[1]
        if num_ws > 1 and torch.rand(()).item() < self.style_mixing_prob:
            cutoff = int(torch.randint(1, num_ws, ()))
            other = self.G.mapping(torch.randn_like(z), c, skip_w_avg_update=True)
            ws = torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)
        return self.G.synthesis(ws), ws

    def _score(self, img: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.D(img if self.augment is None else self.augment(img), c)

    def _report_scores(self, kind: str, scores: torch.Tensor) -> None:
        scores = scores.detach()
        self.report(f"Loss/scores/{kind}", scores)
        self.report(f"Loss/signs/{kind}", scores.sign())

    def _generator_main(
        self,
        z: torch.Tensor,
        c: torch.Tensor,
        real_img: torch.Tensor,
        real_c: torch.Tensor,
        gain: float,
    ) -> None:
        zcr = self.zcr
        moved = None if zcr is None else MovedLatents(z, zcr.noise)
        with gradients_through(self.D) if self.brc else contextlib.nullcontext():
            img, _ = self._generate(z, c)
            scores = self._score(img, c)
            loss = self.objective.G_fake(scores)
            total = loss.mean()
            if self.brc:
                total = total + self._best_response(total, img, scores, real_img, real_c)
        if zcr is not None and moved is not None:
            with moved.replay_rng():
                moved_img, _ = self._generate(moved.z, c, skip_w_avg_update=True)
            change = latent_consistency(img, moved_img)
            total = total - zcr.G * change.mean()  # G is to be sensitive to z, D is not
            self.report("Loss/zcr/G", change.detach())
        total.mul(gain).backward(inputs=[p for p in self.G.parameters() if p.requires_grad])
        self._report_scores("fake", scores)
        self.report("Loss/G/loss", loss.detach())

    def _best_response(
        self,
        G_loss: torch.Tensor,
        img: torch.Tensor,
        scores: torch.Tensor,
        real_img: torch.Tensor,
        real_c: torch.Tensor,
    ) -> torch.Tensor:
        """The term c f that the best-response constraint adds to G's loss."""
        D_loss = self.objective.D_fake(scores).mean()
        D_loss = D_loss + self.objective.D_real(self._score(real_img, real_c)).mean()
        if self.objective.gradient_penalty:
            D_loss = D_loss + self._gradient_penalty(real_img, img, real_c).mean()
        weights = list(self.D.parameters())
        weight = response_weight(G_loss, D_loss, weights, self.brc_limit)
        self.report("Loss/brc_weight", weight)
        return weight * D_loss

    def _path_length(self, z: torch.Tensor, c: torch.Tensor, gain: float) -> None:
        """Path length regularisation (StyleGAN2, equation 4), on a part of the batch."""
        size = max(len(z) // self.pl_batch_shrink, 1)
        img, ws = self._generate(z[:size], c[:size])
        lengths = path_lengths(img, ws, torch.randn_like(img))
        # The gradient also flows through the mean's newest share (the golden numbers show it).
        mean = self.pl_mean.lerp(lengths.mean(), self.pl_decay)
        self.pl_mean.copy_(all_reduce_mean(mean.detach().clone()))  # each process sees a part
        penalty = (lengths - mean).square()
        (penalty * self.pl_weight).mean().mul(gain).backward()
        penalty = penalty.detach()
        self.report("Loss/pl_penalty", penalty)
        self.report("Loss/G/reg", penalty * self.pl_weight)

    def _discriminator_fake(
        self, z: torch.Tensor, c: torch.Tensor, gain: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the images and, for logs, D's loss of each [N]."""
        zcr = self.zcr
        moved = None if zcr is None else MovedLatents(z, zcr.noise)
        with torch.no_grad():
            img, _ = self._generate(z, c)
        scores = self._score(img, c)
        loss = self.objective.D_fake(scores).squeeze(1)
        total = loss
        if zcr is not None and moved is not None:
            with moved.replay_rng():  # of augmentations, too
                with torch.no_grad():
                    moved_img, _ = self._generate(moved.z, c, skip_w_avg_update=True)
                moved_scores = self._score(moved_img, c)
            change = latent_consistency(scores, moved_scores)
            total = loss + zcr.D * change
            self.report("Loss/zcr/D", change.detach())
        total.mean().mul(gain).backward()
        self._report_scores("fake", scores)
        return img, loss.detach()

    def _discriminator_real(
        self, real_img: torch.Tensor, real_c: torch.Tensor, gain: float, *, main: bool, r1: bool
    ) -> torch.Tensor:
        """One evaluation of real images serves the loss (`main`) and the R1 penalty (`r1`)."""
        img = real_img.detach().requires_grad_(r1)
        scores = self._score(img, real_c)
        self._report_scores("real", scores)
        if self.observe_real is not None:
            self.observe_real(scores)
        loss = self.objective.D_real(scores).squeeze(1) if main else torch.zeros_like(scores[:, 0])
        total = loss
        if r1:
            penalty = r1_penalty(scores, img)
            total = loss + penalty * (self.r1_gamma / 2)
            self.report("Loss/r1_penalty", penalty.detach())
            self.report("Loss/D/reg", penalty.detach() * (self.r1_gamma / 2))
        total.mean().mul(gain).backward()
        return loss.detach()

    def _gradient_penalty(
        self, real_img: torch.Tensor, fake_img: torch.Tensor, real_c: torch.Tensor
    ) -> torch.Tensor:
        """Weighted penalty [N] at points drawn uniformly between real and generated images."""
        shape = [len(real_img), 1, 1, 1]
        share = torch.rand(shape, dtype=real_img.dtype, device=real_img.device)
        mixed = real_img.detach().lerp(fake_img, share)
        if not mixed.requires_grad:  # BRC's follow the generator
            mixed.requires_grad_(True)
        penalty = gradient_penalty(self._score(mixed, real_c), mixed)
        self.report("Loss/gradient_penalty", penalty.detach())
        return penalty * self.gp_weight
