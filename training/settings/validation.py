"""What does not go together, of the settings that all families share.

Every check yields messages that say what to do; nothing here raises. The range of one setting
stands where it is declared.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from training.settings.common import CommonSettings
from training.settings.setting import flag


def common_problems(config: CommonSettings) -> Iterator[str]:
    """Messages about settings, each in its range, that cannot be together."""
    yield from batch_problems(config)
    if config.precision == "fp16" and config.device == "cpu":
        yield "--precision=fp16 needs CUDA: use fp32 or bf16 on the CPU"


def batch_problems(config: CommonSettings) -> Iterator[str]:
    """Messages about a batch that cannot be split over processes and forward passes."""
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


def common_contradictions(given: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Options that have no effect, or not the one they ask for, beside the others that were given.

    Args:
        given: Values by the settings' names, and `fp32`.
        values: What holds, presets and defaults included, by name.
    """
    if given.get("fp32") and given.get("precision", "fp32") != "fp32":
        yield f"--fp32=1 contradicts --precision={given['precision']}: leave one of them out"
    if "detector" in given and values["metrics"] == "none":
        yield "--detector needs --metrics; here they are none"
    if {"lr", "lr_g", "lr_d"} <= given.keys():
        yield "--lr has no effect beside --lr-g and --lr-d: leave one of them out"
    if given.get("coop_noise") == "literal" and "coop_noise_schedule" in given:
        yield "--coop-noise-schedule has no effect with --coop-noise=literal"
    if values["coop_kimg"] == 0:  # a negative one is refused for what it is
        for name in given:
            if name.startswith("coop_") and name != "coop_kimg":
                yield f"{flag(name)} needs --coop-kimg"


def common_remarks(config: CommonSettings) -> Iterator[str]:
    """What the user may not expect of settings that are fine, one text each."""
    if config.nhwc and config.precision == "fp32":
        yield "--nhwc=1 has no effect with fp32."
    if config.coop_kimg >= config.kimg:
        yield "--coop-kimg covers the whole run: training is cooperative throughout."
