"""What settings may be: the choices of each, its range, and what does not go together.

Every check yields messages that say what to do; nothing here raises.
"""

import dataclasses
import math

from torch_utils.ops.backend import MODES
from training.settings.augpipes import AUGPIPES
from training.settings.presets import CFG_NAMES

NOISE_SCHEDULES = ("linear", "constant")
LOSSES = ("ns", "hinge", "wgan", "wgan-gp")
AUGMENTATIONS = ("noaug", "ada", "fixed")
ARCHITECTURES = ("orig", "skip", "resnet")
PRECISIONS = ("fp32", "fp16", "bf16")
ON_DIVERGENCE = ("stop", "restore")
SYMPTOMS = ("d-saturated", "no-diversity", "ada-ceiling", "non-finite")

CHANNEL_BASE = 16384  # of scale 1: the feature maps of a layer times its resolution
MAX_LOOKAHEAD = 10
MAX_TIMEOUT_MINUTES = 7 * 24 * 60


def flag(name):
    """The command-line option of a field."""
    return f"--{name.replace('_', '-')}"


def find_problems(config):
    """Messages about everything in a `TrainingConfig` that cannot be."""
    checks = (
        _range_problems,
        _choice_problems,
        _batch_problems,
        _optimisation_problems,
        _network_problems,
        _augmentation_problems,
        _coop_problems,
    )
    for check in checks:
        yield from check(config)


def _range_problems(config):
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{flag(name)} must be a finite number, not {value}"
    at_least = dict(
        workers=0, kimg=1, batch=1, gpus=1, snap=1, mapping_layers=1, channel_max=1, freezed=0,
        gamma=0, gp_weight=0, pl_weight=0, zcr_g=0, zcr_d=0, zcr_noise=0, ema_kimg=0,
        ada_kimg=1, coop_kimg=0, coop_energy_l2=0, save_minutes=0,
    )  # fmt: skip
    for name, low in at_least.items():
        if getattr(config, name) < low:
            yield f"{flag(name)} must be at least {low}, not {getattr(config, name)}"
    for name in ("subset", "keep"):
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"{flag(name)} must be at least 1, not {value}"
    if not 0 <= config.seed < 2**32:
        yield f"--seed must be from 0 to 2^32 - 1, not {config.seed}"


def _choice_problems(config):
    choices = dict(
        cfg=CFG_NAMES, loss=LOSSES, aug=AUGMENTATIONS, augpipe=tuple(AUGPIPES),
        g_arch=ARCHITECTURES, d_arch=ARCHITECTURES, precision=PRECISIONS, ops=MODES,
        on_divergence=ON_DIVERGENCE,
    )  # fmt: skip
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            yield f"{flag(name)} must be one of {', '.join(allowed)}, not {getattr(config, name)}"
    for symptom in config.stop_on:
        if symptom not in SYMPTOMS:
            yield f"--stop-on knows {', '.join(SYMPTOMS)}, not {symptom!r}"


def _batch_problems(config):
    if min(config.batch, config.gpus) < 1:
        return  # a range problem
    if config.batch % config.gpus:
        yield (
            f"--batch={config.batch} cannot be split over --gpus={config.gpus}: choose a multiple "
            f"of {config.gpus}"
        )
    elif config.batch_gpu < 1 or config.batch % (config.batch_gpu * config.gpus):
        yield (
            f"{config.batch // config.gpus} images for each process cannot be split into equal "
            f"parts of {config.batch_gpu}: choose another --batch"
        )
    elif config.batch_gpu % min(config.mbstd_group, config.batch_gpu):
        yield (
            f"each forward pass sees {config.batch_gpu} images, which is no multiple of the "
            f"preset's minibatch-std group of {config.mbstd_group}: choose another --batch"
        )


def _optimisation_problems(config):
    yield from timeout_problems(config.timeout_minutes)
    for name in ("lr", "lr_g", "lr_d", "coop_lr_g", "coop_lr_d", "brc_limit"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            yield f"{flag(name)} must be positive, not {value}"
    if not 0 <= config.style_mixing <= 1:
        yield f"--style-mixing must be from 0 to 1, not {config.style_mixing}"
    if not 0 <= config.brc_lookahead <= MAX_LOOKAHEAD:
        yield f"--brc-lookahead must be from 0 to {MAX_LOOKAHEAD}, not {config.brc_lookahead}"


def timeout_problems(minutes):
    """Messages about --timeout-minutes, which is needed before all other settings are known."""
    if not 0 < minutes <= MAX_TIMEOUT_MINUTES:
        yield f"--timeout-minutes must be above 0 and at most {MAX_TIMEOUT_MINUTES}, not {minutes}"


def _network_problems(config):
    for name in ("g_scale", "d_scale"):
        least = config.resolution / CHANNEL_BASE
        if getattr(config, name) < least:
            yield (
                f"{flag(name)} must be at least {least}, which is one channel at "
                f"{config.resolution}x{config.resolution}, not {getattr(config, name)}"
            )
    if config.freezed > _frozen_at_most(config):
        yield (
            f"--freezed must be at most {_frozen_at_most(config)}, the layers that D has above "
            f"its last resolution, not {config.freezed}"
        )
    if config.precision == "fp16" and config.device == "cpu":
        yield "--precision=fp16 needs CUDA: use fp32 or bf16 on the CPU"


def _frozen_at_most(config):
    """Layers of D's blocks: all but those at 4x4."""
    blocks = max(config.resolution, 4).bit_length() - 3
    fromrgb = blocks if config.d_arch == "skip" else 1
    shortcuts = blocks if config.d_arch == "resnet" else 0
    return fromrgb + 2 * blocks + shortcuts


def _augmentation_problems(config):
    if config.aug == "ada" and config.loss != "ns":
        yield (
            f"--aug=ada reads overfitting off the sign of D, which has no such meaning with "
            f"--loss={config.loss}: choose --aug=noaug or --aug=fixed"
        )
    if config.aug == "fixed" and config.p is None:
        yield "--aug=fixed needs a probability: add --p, for example --p=0.2"
    if config.p is not None and config.aug != "fixed":
        yield "--p needs --aug=fixed"
    if config.p is not None and not 0 <= config.p <= 1:
        yield f"--p must be from 0 to 1, not {config.p}"
    if not 0 <= config.target <= 1:
        yield f"--target must be from 0 to 1, not {config.target}"


def _coop_problems(config):
    if config.coop_steps < 1:
        yield f"--coop-steps must be at least 1, not {config.coop_steps}"
    if config.coop_step_size <= 0:
        yield f"--coop-step-size must be positive, not {config.coop_step_size}"
    if config.coop_noise != "literal" and config.coop_noise < 0:
        yield f"--coop-noise must not be negative, it is {config.coop_noise}"
    if config.coop_noise_schedule not in NOISE_SCHEDULES:
        yield f"--coop-noise-schedule must be one of {', '.join(NOISE_SCHEDULES)}"
    for name in ("coop_step_clip", "coop_clamp"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            yield f"{flag(name)} must be positive, not {value}"


def contradictions(given, values):
    """Options that have no effect, or not the one they ask for, beside the others that were given.

    Args:
        given: Values by field name, and `fp32`.
        values: What holds, presets and defaults included, by field name.
    """
    aug = values["aug"]
    if given.get("fp32") and given.get("precision", "fp32") != "fp32":
        yield f"--fp32=1 contradicts --precision={given['precision']}: leave one of them out"
    if "target" in given and aug != "ada":
        yield f"--target needs --aug=ada; here it is {aug}"
    if "augpipe" in given and aug == "noaug":
        yield "--augpipe needs --aug=ada or fixed; here it is noaug"
    if "detector" in given and values["metrics"] == "none":
        yield "--detector needs --metrics; here they are none"
    if {"lr", "lr_g", "lr_d"} <= given.keys():
        yield "--lr has no effect beside --lr-g and --lr-d: leave one of them out"
    if given.get("coop_noise") == "literal" and "coop_noise_schedule" in given:
        yield "--coop-noise-schedule has no effect with --coop-noise=literal"
    needed = [("gp_weight", "--loss=wgan-gp", values["loss"] == "wgan-gp")]
    needed += [("brc_limit", "--brc=1", values["brc"])]
    needed += [(name, "--zcr=1", values["zcr"]) for name in ("zcr_g", "zcr_d", "zcr_noise")]
    coop = values["coop_kimg"] != 0  # a negative one is refused for what it is
    of_coop = (name for name in given if name.startswith("coop_") and name != "coop_kimg")
    needed += [(name, "--coop-kimg", coop) for name in of_coop]
    for name, option, there in needed:
        if name in given and not there:
            yield f"{flag(name)} needs {option}"


def remarks(given, config):
    """What the user may not expect of a `TrainingConfig` that is fine, one text each.

    Args:
        given: Values that the user gave, by field name.
        config: What came out.
    """
    if config.aug == "noaug" and "aug" not in given:
        yield (
            "Augmentation is off: CoopInit found that ADA works with --loss=ns and R1 (a --gamma "
            "above 0) alone. --aug=ada or --aug=fixed turns it on."
        )
    if config.aug == "ada" and config.gamma == 0:
        yield "ADA without R1 (--gamma=0): CoopInit, section 5.4, found that it needs R1."
    if config.loss != "ns" and "gamma" not in given:
        yield "R1 is off: the --gamma of presets is meant for --loss=ns. --gamma turns it on."
    if config.freezed > 0 and config.resume is None:
        yield "--freezed without --resume keeps layers of D as they were drawn."
    if config.nhwc and config.precision == "fp32":
        yield "--nhwc=1 has no effect with fp32."
    if config.coop_kimg >= config.kimg:
        yield "--coop-kimg covers the whole run: training is cooperative throughout."
