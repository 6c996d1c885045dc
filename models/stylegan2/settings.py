"""StyleGAN2's settings: networks, losses, averages and augmentation. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.stylegan2.presets import COMMON, PRESETS, auto
from training.settings.augpipes import AUGPIPES
from training.settings.config import TrainingConfig
from training.settings.setting import NamePart, flag, setting
from training.settings.validation import batch_problems

LOSSES = ("ns", "hinge", "wgan", "wgan-gp")
ARCHITECTURES = ("orig", "skip", "resnet")
CHANNEL_BASE = 16384  # of scale 1: the feature maps of a layer times its resolution
HALF_PRECISION_BLOCKS = 4  # the highest resolutions of G and D (StyleGAN2-ADA)
OURS = NamePart()  # in the name of a run


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config(TrainingConfig):
    """Settings of a run with StyleGAN2's networks."""

    # Networks
    z_dim: int = setting("size of the latent z", option=False, fixed_on_resume=True)
    w_dim: int = setting("size of the intermediate latent w", option=False, fixed_on_resume=True)
    g_arch: str = setting(
        "architecture of G: orig, skip or resnet",
        choices=ARCHITECTURES,
        in_run_name=OURS,
        fixed_on_resume=True,
    )
    d_arch: str = setting(
        "architecture of D: orig, skip or resnet",
        choices=ARCHITECTURES,
        in_run_name=OURS,
        fixed_on_resume=True,
    )
    g_scale: float = setting(
        "scale s of G: channels(res) = min(16384 s / res, --channel-max)",
        in_run_name=OURS,
        fixed_on_resume=True,
    )
    d_scale: float = setting(
        "scale s of D: channels(res) = min(16384 s / res, --channel-max)",
        in_run_name=OURS,
        fixed_on_resume=True,
    )
    channel_max: int = setting(
        "most channels of a layer", least=1, in_run_name=OURS, fixed_on_resume=True
    )
    mapping_layers: int = setting(
        "layers of G's mapping network", least=1, in_run_name=OURS, fixed_on_resume=True
    )
    mbstd_group: int = setting(
        "group of the minibatch standard deviation layer, samples", option=False
    )
    freezed: int = setting(
        "Freeze-D: layers of D kept fixed, counted from the image",
        0,
        least=0,
        in_run_name=NamePart(13),
        fixed_on_resume=True,
    )

    # Losses and regularisation
    loss: str = setting(
        "adversarial loss: ns, hinge, wgan or wgan-gp",
        "ns",
        choices=LOSSES,
        in_run_name=NamePart(15, "{}"),
    )
    gp_weight: float = setting(
        "weight of the gradient penalty of wgan-gp", 10.0, least=0, in_run_name=NamePart(20)
    )
    gamma: float = setting("weight of R1", least=0, in_run_name=NamePart(5))
    lazy: bool = setting(
        "regularise every few iterations, with corrected lr and betas", True, in_run_name=OURS
    )
    pl_weight: float = setting("weight of path length regularisation", least=0, in_run_name=OURS)
    style_mixing: float = setting("probability of style mixing", least=0, most=1, in_run_name=OURS)
    sn: bool = setting(
        "spectral normalisation of D's 3x3 convolutions",
        False,
        in_run_name=OURS,
        fixed_on_resume=True,
    )
    zcr: bool = setting("latent consistency regularisation (zCR)", False, in_run_name=OURS)
    zcr_g: float = setting("weight of zCR in G's loss", 0.02, least=0, in_run_name=OURS)
    zcr_d: float = setting("weight of zCR in D's loss", 0.2, least=0, in_run_name=OURS)
    zcr_noise: float = setting(
        "standard deviation by which zCR moves latents", 0.1, least=0, in_run_name=OURS
    )
    brc: bool = setting(
        "best-response constraint: G's gradient accounts for D's response", False, in_run_name=OURS
    )
    brc_lookahead: int = setting(
        "steps, 0 to 10, that D looks ahead before each step of G, with or without --brc",
        0,
        least=0,
        most=10,
        in_run_name=OURS,
    )
    brc_limit: float | None = setting(
        "bound on BRC's weight c",
        None,
        above=0,
        when_none="1 with --loss=ns, else 0.1",
        in_run_name=OURS,
    )
    g_reg_interval: int = setting("iterations between path length steps", 4, option=False)
    d_reg_interval: int = setting("iterations between R1 steps", 16, option=False)
    ema_kimg: float = setting("half-life of the moving average of G, kimg", option=False, least=0)
    ema_rampup: float | None = setting(
        "half-life at most this share of kimg so far", option=False, when_none="off"
    )

    # Augmentation of the adversarial stage
    aug: str = setting(
        "augmentation: noaug, ada (adaptive probability) or fixed",
        choices=("noaug", "ada", "fixed"),
        in_run_name=NamePart(8, "{}"),
        fixed_on_resume=True,
        unless_given="ada with --loss=ns and R1, else noaug",
    )
    p: float | None = setting(
        "probability of every augmentation, with --aug=fixed",
        None,
        least=0,
        most=1,
        in_run_name=NamePart(9, "p{}"),
        fixed_on_resume=True,
    )
    target: float = setting(
        "mean sign of D(real) that ada holds", 0.6, least=0, most=1, in_run_name=NamePart(10)
    )
    augpipe: str = setting(
        "which augmentations",
        "bgc",
        choices=tuple(AUGPIPES),
        in_run_name=NamePart(11, "{}"),
        fixed_on_resume=True,
    )
    ada_kimg: int = setting(
        "kimg for the probability to go from 0 to 1", 500, option=False, least=1
    )

    @classmethod
    def presets(cls) -> dict[str, dict[str, Any]]:
        """As `TrainingConfig.presets`."""
        return {"auto": {}} | {name: COMMON | values for name, values in PRESETS.items()}

    @classmethod
    def preset(
        cls, cfg: str, *, resolution: int, gpus: int, batch: int | None = None
    ) -> dict[str, Any]:
        """As `TrainingConfig.preset`; "auto" depends on the resolution."""
        values = COMMON | (auto(resolution, gpus) if cfg == "auto" else PRESETS[cfg])
        return values | {"batch_gpu": cls.images_per_pass(values, gpus, batch)}

    @classmethod
    def own_defaults(cls, given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """As `TrainingConfig.own_defaults`."""
        changes: dict[str, Any] = {}
        if given.get("loss", "ns") != "ns":
            changes["gamma"] = 0.0  # presets weigh R1 for the non-saturating loss (Tables 5 and 6)
        if "resume" in given:
            changes["ema_rampup"] = None  # the snapshot's average is already a good start
            changes["ada_kimg"] = 100
        return changes | {"aug": default_augmentation({**values, **changes, **given})}

    def own_problems(self) -> Iterator[str]:
        """As `TrainingConfig.own_problems`."""
        yield from _network_problems(self)
        yield from _augmentation_problems(self)

    @classmethod
    def own_contradictions(
        cls, given: Mapping[str, Any], values: Mapping[str, Any]
    ) -> Iterator[str]:
        """As `TrainingConfig.own_contradictions`."""
        aug = values["aug"]
        if "target" in given and aug != "ada":
            yield f"--target needs --aug=ada; here it is {aug}"
        if "augpipe" in given and aug == "noaug":
            yield "--augpipe needs --aug=ada or fixed; here it is noaug"
        needed = [("gp_weight", "--loss=wgan-gp", values["loss"] == "wgan-gp")]
        needed += [("brc_limit", "--brc=1", values["brc"])]
        needed += [(name, "--zcr=1", values["zcr"]) for name in ("zcr_g", "zcr_d", "zcr_noise")]
        for name, option, there in needed:
            if name in given and not there:
                yield f"{flag(name)} needs {option}"

    def own_remarks(self, given: Mapping[str, Any]) -> Iterator[str]:
        """As `TrainingConfig.own_remarks`."""
        if self.aug == "noaug" and "aug" not in given:
            yield (
                "Augmentation is off: CoopInit found that ADA works with --loss=ns and R1 (a "
                "--gamma above 0) alone. --aug=ada or --aug=fixed turns it on."
            )
        if self.aug == "ada" and self.gamma == 0:
            yield "ADA without R1 (--gamma=0): CoopInit, section 5.4, found that it needs R1."
        if self.loss != "ns" and "gamma" not in given:
            yield "R1 is off: the --gamma of presets is meant for --loss=ns. --gamma turns it on."
        if self.freezed > 0 and self.resume is None:
            yield "--freezed without --resume keeps layers of D as they were drawn."

    @property
    def channel_bases(self) -> tuple[int, int]:
        """Of G and D: the feature maps of a layer times its resolution, where nothing bounds it."""
        return round(self.g_scale * CHANNEL_BASE), round(self.d_scale * CHANNEL_BASE)

    @property
    def num_half_res(self) -> int:
        """How many of the highest resolutions run in half precision."""
        return 0 if self.precision == "fp32" else HALF_PRECISION_BLOCKS

    @property
    def conv_clamp(self) -> int | None:
        """Bound of activations: 256 in half precision (StyleGAN2-ADA), else none."""
        return 256 if self.num_half_res > 0 else None

    def lazy_ratio(self, interval: int) -> float:
        """Correction of lr and betas for lazy regularisation (StyleGAN2, appendix B)."""
        return interval / (interval + 1) if self.lazy else 1.0


def default_augmentation(values: Mapping[str, Any]) -> str:
    """`aug` where the user names none: adaptive, where the paper finds that it works.

    CoopInit, section 5.4: only the non-saturating loss with R1 gives ADA a score to steer by.
    """
    return "ada" if values.get("loss", "ns") == "ns" and values["gamma"] > 0 else "noaug"


def _network_problems(config: StyleGAN2Config) -> Iterator[str]:
    splits = min(config.batch, config.gpus) >= 1 and not any(batch_problems(config))
    if splits and config.batch_gpu % min(config.mbstd_group, config.batch_gpu):
        yield (
            f"each forward pass sees {config.batch_gpu} images, which is no multiple of the "
            f"preset's minibatch-std group of {config.mbstd_group}: choose another --batch"
        )
    least = config.resolution / CHANNEL_BASE
    for name in ("g_scale", "d_scale"):
        if getattr(config, name) < least:
            yield (
                f"{flag(name)} must be at least {least}, which is one channel at "
                f"{config.resolution}x{config.resolution}, not {getattr(config, name)}"
            )
    most = _frozen_at_most(config)
    if config.freezed > most:
        yield (
            f"--freezed must be at most {most}, the layers that D has above its last resolution, "
            f"not {config.freezed}"
        )


def _frozen_at_most(config: StyleGAN2Config) -> int:
    """Layers of D's blocks: all but those at 4x4."""
    blocks = max(config.resolution, 4).bit_length() - 3
    fromrgb = blocks if config.d_arch == "skip" else 1
    shortcuts = blocks if config.d_arch == "resnet" else 0
    return fromrgb + 2 * blocks + shortcuts


def _augmentation_problems(config: StyleGAN2Config) -> Iterator[str]:
    if config.aug == "ada" and config.loss != "ns":
        yield (
            f"--aug=ada reads overfitting off the sign of D, which has no such meaning with "
            f"--loss={config.loss}: choose --aug=noaug or --aug=fixed"
        )
    if config.aug == "fixed" and config.p is None:
        yield "--aug=fixed needs a probability: add --p, for example --p=0.2"
    if config.p is not None and config.aug != "fixed":
        yield "--p needs --aug=fixed"
