"""Every setting of a training run: one frozen dataclass, with a JSON round trip.

What the settings may be stands in `validation.py`, what `--cfg` sets in `presets.py`.

Imports no torch, so that `train.py --help` answers at once.
"""

import dataclasses
import json
from dataclasses import dataclass, field, fields
from typing import ClassVar

from dnnlib.errors import OptionError
from training.settings.presets import preset
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS
from training.settings.validation import SYMPTOMS, contradictions, find_problems, flag

HALF_PRECISION_BLOCKS = 4  # the highest resolutions of G and D (StyleGAN2-ADA)

# With other values of these a run is still the same one.
OF_THE_MACHINE = (
    "device", "gpus", "batch_gpu", "workers", "cache", "cudnn_benchmark", "allow_tf32", "nhwc",
    "ops", "snap", "save_minutes", "timeout_minutes", "metrics", "detector", "keep",
    "on_divergence",
)  # fmt: skip
# With other values of these a checkpoint does not fit, or means something else.
FIXED = (
    "cfg", "resolution", "cond", "subset", "mirror", "seed", "z_dim", "w_dim", "mapping_layers",
    "g_scale", "d_scale", "channel_max", "g_arch", "d_arch", "sn", "freezed", "aug", "p", "augpipe",
)  # fmt: skip


class ConfigError(OptionError):
    """A setting is out of range or contradicts another; the message says what to do."""


def setting(doc, default=dataclasses.MISSING):
    """A documented field of `TrainingConfig`."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of one training run, complete: presets and defaults are already filled in.

    Build one with `TrainingConfig.from_options()`. `kimg` counts thousands of real images shown.

    Raises:
        ConfigError: Lists every setting that is out of range.
    """

    family: ClassVar[str] = "stylegan2"  # of networks

    # Data
    data: str = setting("path of the zip or folder")
    resolution: int = setting("width and height of the images, pixels")
    cond: bool = setting("train with the labels of dataset.json", False)
    subset: int | None = setting("train with this many images only; None: all", None)
    mirror: bool = setting("add an x-flipped copy of every image", False)
    cache: bool = setting(
        "decode images of up to 64x64 once, into a file shared by workers and runs", False
    )
    workers: int = setting("data-loader processes; 0 loads in the training process", 3)

    # Length, batch, randomness
    cfg: str = setting("name of the preset", "auto")
    kimg: int = setting("length of the run")
    batch: int = setting("images per iteration, all processes together")
    batch_gpu: int = setting("images a forward pass; larger batches accumulate gradients")
    gpus: int = setting("processes on this machine; torchrun says it by itself", 1)
    timeout_minutes: float = setting(
        "end the run when a process keeps the others waiting for that long", 30.0
    )
    seed: int = setting("seed of every random number", 0)
    snap: int = setting("ticks, of 4 kimg each, between snapshots", 50)
    save_minutes: float = setting(
        "minutes between checkpoints, by which a run that is stopped goes on", 10.0
    )
    on_divergence: str = setting(
        "stop, or restore: go back to the last good tick once, with half the learning rates", "stop"
    )
    stop_on: tuple[str, ...] = setting(
        f"stop, with exit status 3, at a symptom that is else warned of: {', '.join(SYMPTOMS)}", ()
    )
    keep: int | None = setting(
        "newest snapshots to keep, beside the best and that of the stage switch; None: all", None
    )
    metrics: str | None = setting(
        "metrics of every snapshot, comma-separated, or none; None: fid50k_full on CUDA or with "
        "--detector, else none",
        None,
    )
    detector: str | None = setting(
        "network instead of the metrics' standard ones: TorchScript file, URL or torch-fidelity",
        None,
    )

    # Networks
    z_dim: int = setting("size of the latent z")
    w_dim: int = setting("size of the intermediate latent w")
    mapping_layers: int = setting("layers of G's mapping network")
    g_scale: float = setting("scale s of G: channels(res) = min(16384 s / res, --channel-max)")
    d_scale: float = setting("scale s of D: channels(res) = min(16384 s / res, --channel-max)")
    channel_max: int = setting("most channels of a layer")
    g_arch: str = setting("architecture of G: orig, skip or resnet")
    d_arch: str = setting("architecture of D: orig, skip or resnet")
    sn: bool = setting("spectral normalisation of D's 3x3 convolutions", False)
    mbstd_group: int = setting("group of the minibatch standard deviation layer, samples")
    freezed: int = setting("Freeze-D: layers of D kept fixed, counted from the image", 0)
    precision: str = setting(
        "precision of the four highest resolutions: fp32, fp16 (CUDA only) or bf16"
    )
    nhwc: bool = setting("channels-last memory layout in half-precision blocks", False)
    resume: str | None = setting(
        f"snapshot to start from (file, URL, {', '.join(OFFICIAL_SNAPSHOTS)}), "
        "or run to go on with (its folder, or latest)",
        None,
    )

    # Optimisation
    lr: float = setting("learning rate of Adam, before the lazy correction")
    lr_g: float | None = setting("learning rate of G; None: as --lr", None)
    lr_d: float | None = setting("learning rate of D; None: as --lr", None)
    loss: str = setting("adversarial loss: ns, hinge, wgan or wgan-gp", "ns")
    gp_weight: float = setting("weight of the gradient penalty of wgan-gp", 10.0)
    gamma: float = setting("weight of R1")
    style_mixing: float = setting("probability of style mixing")
    pl_weight: float = setting("weight of path length regularisation")
    zcr: bool = setting("latent consistency regularisation (zCR)", False)
    zcr_g: float = setting("weight of zCR in G's loss", 0.02)
    zcr_d: float = setting("weight of zCR in D's loss", 0.2)
    zcr_noise: float = setting("standard deviation by which zCR moves latents", 0.1)
    brc: bool = setting("best-response constraint: G's gradient accounts for D's response", False)
    brc_lookahead: int = setting(
        "steps, 0 to 10, that D looks ahead before each step of G, with or without --brc", 0
    )
    brc_limit: float | None = setting(
        "bound on BRC's weight c; None: 1 with --loss=ns, else 0.1", None
    )
    lazy: bool = setting("regularise every few iterations, with corrected lr and betas", True)
    g_reg_interval: int = setting("iterations between path length steps", 4)
    d_reg_interval: int = setting("iterations between R1 steps", 16)
    ema_kimg: float = setting("half-life of the moving average of G, kimg")
    ema_rampup: float | None = setting("half-life at most this share of kimg so far; None: off")

    # Augmentation of the adversarial stage
    aug: str = setting("augmentation: noaug, ada (adaptive probability) or fixed")
    p: float | None = setting("probability of every augmentation, with --aug=fixed", None)
    target: float = setting("mean sign of D(real) that ada holds", 0.6)
    augpipe: str = setting("which augmentations", "bgc")
    ada_kimg: int = setting("kimg for the probability to go from 0 to 1", 500)

    # Cooperative stage
    coop_kimg: int = setting("length of the cooperative stage; 0: none", 0)
    coop_steps: int = setting("Langevin steps T", 10)
    coop_step_size: float = setting("Langevin step size eta", 1.0)
    coop_noise: float | str = setting(
        "noise std of the first step, or literal: sqrt(2 eta) at every step", 0.01
    )
    coop_noise_schedule: str = setting(
        "course of the noise: linear (falls to 0) or constant", "linear"
    )
    coop_step_clip: float | None = setting("bound on the rms of a gradient step; None: off", None)
    coop_clamp: float | None = setting("keep chains within +- this; None: off", None)
    coop_energy_l2: float = setting("weight of the squared scores in D's loss", 0.0)
    coop_lr_g: float | None = setting("learning rate of G in this stage; None: as later", None)
    coop_lr_d: float | None = setting("learning rate of D in this stage; None: as later", None)

    # Machine
    device: str = setting("cpu, cuda or cuda:N", "cpu")
    cudnn_benchmark: bool = setting("let cuDNN choose algorithms by trial", True)
    allow_tf32: bool = setting("allow TensorFloat-32 in float32 matrix products", False)
    ops: str = setting("operators: native, ref (plain PyTorch) or auto (what can be had)", "auto")

    def __post_init__(self):
        """Check everything and report all problems together."""
        problems = list(find_problems(self))
        if problems:
            raise ConfigError("; ".join(problems))

    @classmethod
    def from_options(cls, options, *, resolution):
        """Fill preset values under the options a user gave.

        Args:
            options: Values by field name; None means not given. `fp32=True` is the official
                name of `precision="fp32"`.
            resolution: Of the data set, pixels.

        Raises:
            ConfigError: Lists every setting that is out of range and every contradiction.
        """
        given = {name: value for name, value in options.items() if value is not None}
        values = preset(
            given.get("cfg", "auto"),
            resolution=resolution,
            gpus=max(given.get("gpus", 1), 1),  # refused later, together with other problems
            batch=given.get("batch"),
        )
        if given.get("loss", "ns") != "ns":
            values["gamma"] = 0.0  # presets weigh R1 for the non-saturating loss (Tables 5 and 6)
        values["aug"] = default_augmentation(values | given)
        values["precision"] = default_precision(given)
        if "resume" in given:
            values["ema_rampup"] = None  # the snapshot's average is already a good start
            values["ada_kimg"] = 100
        defaults = {f.name: f.default for f in fields(cls)}
        problems = list(contradictions(given, defaults | values | given))
        given.pop("fp32", None)
        try:
            config = cls(**(values | given | {"resolution": resolution}))
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("; ".join(problems))
        return config

    def to_json(self):
        """The settings as an indented JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text):
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: The text is of something else.
        """
        values = json.loads(text)
        values |= {"stop_on": tuple(values["stop_on"])}
        for f in fields(cls):
            if f.name in values and not _is_a(values[f.name], f.type):
                raise TypeError(f"{f.name} is {values[f.name]!r}, not {f.type}")
        return cls(**values)

    def differences(self, other):
        """Texts `--NAME (VALUE there)` of the settings that make `other` another run than this.

        How and where the same images are trained on does not.
        """
        return [
            f"{flag(f.name)} ({getattr(other, f.name)} there)"
            for f in fields(self)
            if f.name not in OF_THE_MACHINE and getattr(self, f.name) != getattr(other, f.name)
        ]

    def fixed_differences(self, other):
        """Options of settings with which `other` cannot take up the checkpoint of this run."""
        return [flag(name) for name in FIXED if getattr(self, name) != getattr(other, name)]

    def changed(self, options):
        """These settings with the `options` that a user gave, by field name, in their place.

        Raises:
            ConfigError: As `from_options`.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if given.pop("fp32", False):
            given.setdefault("precision", "fp32")
        values = dataclasses.asdict(self) | given
        batch, gpus = values["batch"], values["gpus"]
        if gpus > 0 and batch % (values["batch_gpu"] * gpus):
            values["batch_gpu"] = batch // gpus
        return dataclasses.replace(self, **values)

    @property
    def num_half_res(self):
        """How many of the highest resolutions run in half precision."""
        return 0 if self.precision == "fp32" else HALF_PRECISION_BLOCKS

    @property
    def conv_clamp(self):
        """Bound of activations: 256 in half precision (StyleGAN2-ADA), else none."""
        return 256 if self.num_half_res > 0 else None

    @property
    def learning_rates(self):
        """Of G and D in the adversarial stage, before the lazy correction."""
        return self.lr_g or self.lr, self.lr_d or self.lr

    @property
    def coop_learning_rates(self):
        """Of G and D in the cooperative stage, before the lazy correction."""
        lr_g, lr_d = self.learning_rates
        return self.coop_lr_g or lr_g, self.coop_lr_d or lr_d

    def lazy_ratio(self, interval):
        """Correction of lr and betas for lazy regularisation (StyleGAN2, appendix B)."""
        return interval / (interval + 1) if self.lazy else 1.0

    def training_set_kwargs(self):
        """Arguments of the data set as network snapshots carry them (interface of the field)."""
        kwargs = dict(
            class_name="training.dataset.ImageFolderDataset",
            path=self.data,
            use_labels=self.cond,
            max_size=self.subset,
            xflip=self.mirror,
            resolution=self.resolution,
        )
        if self.subset is not None:
            kwargs["random_seed"] = self.seed
        return kwargs


def _is_a(value, kind):
    """Whether a value is of the type of a field; JSON writes 1.0 as it likes."""
    if kind == tuple[str, ...]:
        return all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (isinstance(value, int) and isinstance(1.0, kind))


def default_augmentation(values):
    """`aug` where the user names none: adaptive, where the paper finds that it works.

    CoopInit, section 5.4: only the non-saturating loss with R1 gives ADA a score to steer by.
    """
    return "ada" if values.get("loss", "ns") == "ns" and values["gamma"] > 0 else "noaug"


def default_precision(given):
    """`precision` where the user names none; the CPU has no float16 convolutions."""
    return "fp32" if given.get("fp32") or given.get("device", "cpu") == "cpu" else "fp16"


def setting_docs():
    """Documentation of every field of `TrainingConfig`, by name."""
    return {f.name: f.metadata["doc"] for f in fields(TrainingConfig)}
