"""The two stages of StyleGAN2: cooperative (Algorithm 1 of CoopInit), then adversarial."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from coopinit_patch.loss import no_report
from models.coop_loss import build_coop_loss
from models.stylegan2.parts import Parts
from models.stylegan2.settings import StyleGAN2Config
from training.best_response import look_ahead
from training.loss import StyleGAN2Loss
from training.model import Stages
from training.objectives import ConsistencyWeights
from training.stages import MicroBatch, Phase, Report, Stage, run_phase


def build_stages(
    config: StyleGAN2Config, parts: Parts, loss: StyleGAN2Loss, report: Report
) -> Stages:
    """The cooperative stage, None where its length is zero, and the adversarial one with `loss`."""
    cooperative = _cooperative(config, parts, report) if config.coop_kimg > 0 else None
    return Stages(cooperative, _adversarial(config, parts, loss))


def _cooperative(config: StyleGAN2Config, parts: Parts, report: Report) -> Stage:
    return Stage(
        name="cooperative",
        log_prefix="Coop",
        loss=build_coop_loss(config, parts.G, parts.D, report),
        phases=(_phase(parts, "G", "main"), _phase(parts, "D", "main")),
        learning_rates=_learning_rates(config, config.coop_learning_rates),
    )


def _adversarial(config: StyleGAN2Config, parts: Parts, loss: StyleGAN2Loss) -> Stage:
    stage = Stage(
        name="adversarial",
        log_prefix="Loss",
        loss=loss,
        phases=(
            *_phases(config, parts, "G", config.pl_weight, config.g_reg_interval),
            *_phases(config, parts, "D", config.gamma, config.d_reg_interval),
        ),
        learning_rates=_learning_rates(config, config.learning_rates),
        adaptive=parts.ada is not None,
    )
    return _with_lookahead(stage, config, parts) if config.brc_lookahead > 0 else stage


def build_adversarial_loss(config: StyleGAN2Config, parts: Parts, report: Report) -> StyleGAN2Loss:
    """The loss of the adversarial stage; it shows D's scores of real images to ADA."""
    observe_real = None if parts.ada is None else parts.ada.observe
    return _adversarial_loss(config, parts, report=report, observe_real=observe_real)


def _adversarial_loss(config: StyleGAN2Config, parts: Parts, **listeners: Any) -> StyleGAN2Loss:
    zcr = ConsistencyWeights(config.zcr_g, config.zcr_d, config.zcr_noise)
    return StyleGAN2Loss(
        parts.G,
        parts.D,
        augment=parts.augment_pipe,
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


def _learning_rates(config: StyleGAN2Config, rates: tuple[float, float]) -> dict[str, float]:
    """Of the optimizers of G and D, corrected for lazy regularisation."""
    intervals = config.g_reg_interval, config.d_reg_interval
    return {
        name: rate * config.lazy_ratio(interval)
        for name, rate, interval in zip("GD", rates, intervals, strict=True)
    }


def _phases(
    config: StyleGAN2Config, parts: Parts, name: str, weight: float, interval: int
) -> list[Phase]:
    """Main and regulariser of a network, in one (Gboth, Dboth) unless it is lazy."""
    if weight <= 0:
        return [_phase(parts, name, "main")]
    if not config.lazy:
        return [_phase(parts, name, "both")]
    return [_phase(parts, name, "main"), _phase(parts, name, "reg", interval)]


def _phase(parts: Parts, name: str, part: str, interval: int = 1) -> Phase:
    net, optimizer = parts.nets[name], parts.optimizers[name]
    return Phase(f"{name}{part}", {name: net}, (optimizer,), interval)


def _with_lookahead(stage: Stage, config: StyleGAN2Config, parts: Parts) -> Stage:
    """The stage with D some steps ahead while the first phase, that of G, runs.

    The steps are taken back, and leave no trace in statistics, in ADA or in G's mean of w.
    """
    follow = next(phase for phase in stage.phases if "D" in phase.nets)
    loss = _adversarial_loss(config, parts, report=no_report, moves_w_avg=False)
    silent = replace(stage, name="look-ahead", loss=loss, phases=(follow,))

    @contextlib.contextmanager
    def ahead(draw: Callable[[], Sequence[MicroBatch]]) -> Iterator[None]:
        def step() -> None:
            run_phase(silent, follow, draw(), no_report)

        [optimizer] = follow.optimizers
        with look_ahead(parts.D, optimizer, [step] * config.brc_lookahead):
            yield

    lead, *others = stage.phases
    return replace(stage, phases=(replace(lead, context=ahead), *others))
