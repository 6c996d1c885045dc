"""The settings that all families of networks share.

Adding an option: a line here, or in the settings of a family; `setting()` says what it can tell.
"""

from dataclasses import dataclass

from torch_utils.ops.backend import MODES
from training.settings.family_settings import DEFAULT_CFG, preset_names
from training.settings.setting import NamePart, setting
from training.settings.transfer_names import OFFICIAL_SNAPSHOTS

SYMPTOMS = ("d-saturated", "no-diversity", "ada-ceiling", "non-finite")
WEEK = 7 * 24 * 60  # minutes

# Sections of the help text, in their order.
GENERAL = "General"
DATA = "Data"
PRESET = "Preset, and what it sets"
LEARNING_RATES = "Learning rates"
TRANSFER = "Transfer learning"
PERFORMANCE = "Performance"
COOP = "Cooperative initialisation (CoopInit)"
SECTIONS = (GENERAL, DATA, PRESET, LEARNING_RATES, TRANSFER, PERFORMANCE, COOP)

# Places of our own parts in the name of a run.
RATE = NamePart(21)
LATE = NamePart(40)


@dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """The fields of `TrainingConfig`."""

    # Data
    data: str = setting(
        "path of the zip or folder",
        section=DATA,
        metavar="PATH",
        unless_given="needed for a new run",
    )
    resolution: int = setting(
        "width and height of the images, pixels", option=False, fixed_on_resume=True
    )
    cond: bool = setting(
        "train with the labels of dataset.json",
        False,
        section=DATA,
        fixed_on_resume=True,
        in_run_name=NamePart(1, when="set"),
    )
    subset: int | None = setting(
        "train with this many images only",
        None,
        section=DATA,
        least=1,
        when_none="all",
        fixed_on_resume=True,
        in_run_name=NamePart(2, when="set"),
    )
    mirror: bool = setting(
        "add an x-flipped copy of every image",
        False,
        section=DATA,
        fixed_on_resume=True,
        in_run_name=NamePart(3, when="set"),
    )
    workers: int = setting(
        "data-loader processes; 0 loads in the training process",
        3,
        section=DATA,
        least=0,
        runtime=True,
    )
    cache: bool = setting(
        "decode images of up to 64x64 once, into a file shared by workers and runs",
        False,
        section=DATA,
        runtime=True,
    )

    # Length, batch, randomness
    cfg: str = setting(
        "name of the preset",
        DEFAULT_CFG,
        section=PRESET,
        choices=preset_names,
        fixed_on_resume=True,
        in_run_name=NamePart(4, "{}", "set"),
    )
    kimg: int = setting("length of the run", section=PRESET, least=1, in_run_name=NamePart(6))
    batch: int = setting(
        "images per iteration, all processes together",
        section=PRESET,
        least=1,
        in_run_name=NamePart(7),
    )
    batch_gpu: int = setting(
        "images per forward pass; larger batches accumulate gradients", option=False, runtime=True
    )
    device: str = setting(
        "where to train: cpu, cuda or cuda:N",
        "cpu",
        section=GENERAL,
        unless_given="cuda where there is one",
        runtime=True,
    )
    gpus: int = setting(
        "processes on this machine; torchrun says it by itself",
        1,
        section=GENERAL,
        least=1,
        runtime=True,
    )
    timeout_minutes: float = setting(
        "end the run when a process keeps the others waiting for that long",
        30.0,
        section=GENERAL,
        above=0,
        most=WEEK,
        runtime=True,
    )
    seed: int = setting(
        "seed of every random number",
        0,
        section=GENERAL,
        least=0,
        most=2**32 - 1,
        fixed_on_resume=True,
    )
    snap: int = setting(
        "ticks, of 4 kimg each, between snapshots", 50, section=GENERAL, least=1, runtime=True
    )
    save_minutes: float = setting(
        "minutes between checkpoints, from which a run that is stopped resumes",
        10.0,
        section=GENERAL,
        least=0,
        runtime=True,
    )
    on_divergence: str = setting(
        "stop, or restore: roll back to the last good tick once, with half the learning rates",
        "stop",
        section=GENERAL,
        choices=("stop", "restore"),
        runtime=True,
    )
    stop_on: tuple[str, ...] = setting(
        f"stop, with exit status 3, at a symptom that is else warned of: {', '.join(SYMPTOMS)}",
        (),
        section=GENERAL,
        choices=SYMPTOMS,
    )
    metrics: str | None = setting(
        "metrics of every snapshot, comma-separated, or none",
        None,
        section=GENERAL,
        metavar="LIST",
        when_none="fid50k_full on CUDA or with --detector, else none",
        runtime=True,
    )
    detector: str | None = setting(
        "network instead of the metrics' standard ones: TorchScript file, URL or torch-fidelity",
        None,
        section=GENERAL,
        metavar="PT",
        runtime=True,
    )
    keep: int | None = setting(
        "newest snapshots to keep, beside the best and that of the stage switch",
        None,
        section=GENERAL,
        least=1,
        when_none="all",
        runtime=True,
    )

    # Start, learning rates, precision
    resume: str | None = setting(
        f"snapshot to start from (file, URL, {', '.join(OFFICIAL_SNAPSHOTS)}), "
        "or run to resume (its folder, or latest)",
        None,
        section=TRANSFER,
        metavar="PKL|RUN_DIR|latest",
        word_for_none="noresume",  # how scripts for the official train.py spell it
        in_run_name=NamePart(12, when="set"),
    )
    precision: str = setting(
        "precision of large feature maps: fp32, fp16 (CUDA only) or bf16",
        section=PERFORMANCE,
        choices=("fp32", "fp16", "bf16"),
        in_run_name=LATE,
        unless_given="fp16 on CUDA, fp32 on the CPU",
    )
    nhwc: bool = setting(
        "channels-last memory layout where precision is halved",
        False,
        section=PERFORMANCE,
        runtime=True,
    )
    lr: float = setting("learning rate of Adam", section=LEARNING_RATES, above=0, in_run_name=RATE)
    lr_g: float | None = setting(
        "learning rate of G",
        None,
        section=LEARNING_RATES,
        above=0,
        when_none="as --lr",
        in_run_name=RATE,
    )
    lr_d: float | None = setting(
        "learning rate of D",
        None,
        section=LEARNING_RATES,
        above=0,
        when_none="as --lr",
        in_run_name=RATE,
    )

    # Cooperative stage
    coop_kimg: int = setting(
        "length of the cooperative stage; 0: none",
        0,
        section=COOP,
        least=0,
        in_run_name=NamePart(14, "coop{}", "given and set"),
    )
    coop_steps: int = setting("Langevin steps T", 10, section=COOP, least=1, in_run_name=LATE)
    coop_step_size: float = setting(
        "Langevin step size eta", 1.0, section=COOP, above=0, in_run_name=LATE
    )
    coop_noise: float | str = setting(
        "noise std of the first step, or literal: sqrt(2 eta) at every step",
        0.01,
        section=COOP,
        least=0,
        choices=("literal",),
        in_run_name=LATE,
    )
    coop_noise_schedule: str = setting(
        "course of the noise: linear (falls to 0) or constant",
        "linear",
        section=COOP,
        choices=("linear", "constant"),
        in_run_name=LATE,
    )
    coop_step_clip: float | None = setting(
        "bound on the rms of a gradient step",
        None,
        section=COOP,
        above=0,
        when_none="off",
        in_run_name=LATE,
    )
    coop_clamp: float | None = setting(
        "keep chains within +- this", None, section=COOP, above=0, when_none="off", in_run_name=LATE
    )
    coop_energy_l2: float = setting(
        "weight of the squared scores in D's loss", 0.0, section=COOP, least=0, in_run_name=LATE
    )
    coop_lr_g: float | None = setting(
        "learning rate of G in this stage",
        None,
        section=COOP,
        above=0,
        when_none="as later",
        in_run_name=LATE,
    )
    coop_lr_d: float | None = setting(
        "learning rate of D in this stage",
        None,
        section=COOP,
        above=0,
        when_none="as later",
        in_run_name=LATE,
    )

    # Machine
    cudnn_benchmark: bool = setting(
        "let cuDNN choose algorithms by trial", True, option=False, runtime=True
    )
    allow_tf32: bool = setting(
        "allow TensorFloat-32 in float32 matrix products", False, section=PERFORMANCE, runtime=True
    )
    ops: str = setting(
        "operators: native, ref (plain PyTorch) or auto (what can be had)",
        "auto",
        section=PERFORMANCE,
        choices=MODES,
        runtime=True,
    )
