"""From options to what is to be done: the settings of a run, its data, and where it resumes.

Imports torch late, so that `train.py --help` answers at once.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnnlib import families
from dnnlib.errors import OptionError
from training.settings.config import TrainingConfig, make_config
from training.settings.family_settings import DEFAULT_CFG, config_class, family_name
from training.settings.run_name import describe_run


@dataclass(frozen=True)
class RunPlan:
    """What all processes of a run are to do."""

    config: TrainingConfig
    dataset: Any  # the opened `ImageFolderDataset`
    description: str  # names the folder of a new run
    outdir: str  # where that is made
    run_dir: Path | None = None  # of the run that is resumed, from its newest checkpoint
    notes: tuple[str, ...] = ()  # for the user


def names_run(resume: str | None) -> bool:
    """Whether this value of --resume means a run to resume, and not weights to start from."""
    return resume == "latest" or (resume is not None and Path(resume).is_dir())


def make_plan(given: Mapping[str, Any], outdir: str, restart: bool = False) -> RunPlan:
    """What the options of train.py ask for; nothing is written or downloaded.

    Args:
        given: Values by field name, where the user gave one.
        outdir: Folder of all runs.
        restart: Start a new run, even where one of the same settings is unfinished.

    Raises:
        UserError: Something of it cannot be.
    """
    if names_run(given.get("resume")):
        if restart:
            raise OptionError("--restart starts a new run, --resume=RUN resumes one")
        return _resume_named(dict(given), outdir)
    return _resume_same_or_start(given, outdir, restart)


def _resume_named(given: dict[str, Any], outdir: str) -> RunPlan:
    """The run that --resume means, with the other options instead of its own settings."""
    from torch_utils import distributed
    from training.run.resume import changed_settings, find_run, read_settings

    resume = given.pop("resume")
    run_dir, lines = distributed.broadcast_from_rank0(
        lambda: find_run(outdir, resume, given.get("kimg"))
    )
    before = read_settings(run_dir)
    given = {"device": before.device, "gpus": before.gpus} | given
    config, changes = changed_settings(run_dir, machine_settings(given))
    dataset = open_dataset(dataclasses.asdict(config))
    notes = (*lines, *changes, f"Resuming the unfinished run {run_dir}.")
    return RunPlan(config, dataset, run_dir.name, outdir, run_dir, notes)


def _resume_same_or_start(given: Mapping[str, Any], outdir: str, restart: bool) -> RunPlan:
    """The newest unfinished run of the same settings, or a new one."""
    from torch_utils import distributed
    from training.launch.attempts import job_name, started_again
    from training.run.resume import find_unfinished

    if "data" not in given and "resume" in given:
        raise OptionError(
            f"--resume={given['resume']} is no folder of a run; a snapshot to start from needs "
            "--data, too"
        )
    config, dataset = configure(given)
    run_dir, lines = None, []
    if not restart:
        run_dir, lines = distributed.broadcast_from_rank0(lambda: find_unfinished(outdir, config))
    elif started_again():
        run_dir, _ = distributed.broadcast_from_rank0(
            lambda: find_unfinished(outdir, config, job_name())
        )
        lines = ["This is not the first attempt: --restart was obeyed by that."]
    notes = [*config.remarks(given), *lines]
    if run_dir is None:
        name = describe_run(dataset.name, config, given)
        return RunPlan(config, dataset, name, outdir, notes=tuple(notes))
    notes.append(f"Resuming the unfinished run {run_dir}; --restart starts a new one.")
    return RunPlan(config, dataset, run_dir.name, outdir, run_dir, tuple(notes))


def configure(given: Mapping[str, Any]) -> tuple[TrainingConfig, Any]:
    """Open the data set and complete the settings."""
    settings = {"cudnn_benchmark": True} | machine_settings(given)
    dataset = open_dataset(settings)
    return make_config(settings, dataset.resolution), dataset


def machine_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the device that it asks for, or that there is, and values for all machines."""
    from torch_utils.devices import find_device
    from torch_utils.distributed import gpus_needed

    settings = {name: value for name, value in given.items() if name != "nobench"}
    if "data" in given:
        settings["data"] = os.path.abspath(given["data"])  # another folder may be the current one
    detector = given.get("detector")
    if detector is not None and Path(detector).exists():
        settings["detector"] = os.path.abspath(detector)
    try:
        gpus = gpus_needed(given.get("gpus", 1))
        settings["device"] = str(find_device(given.get("device"), gpus))
    except ValueError as error:
        raise OptionError(str(error)) from error
    if "nobench" in given:
        settings["cudnn_benchmark"] = not given["nobench"]
    return settings


def open_dataset(given: Mapping[str, Any]) -> Any:
    """The data set of these settings, by field name.

    Raises:
        DatasetError: It cannot be used.
    """
    if "data" not in given:
        raise OptionError("Missing option '--data': the zip or folder to train on")
    subset = given.get("subset")
    family = family_name(config_class(given.get("cfg", DEFAULT_CFG)))
    make = families.load(families.FAMILIES[family].dataset)
    return make(
        given["data"],
        use_labels=given.get("cond", False),
        max_size=None if subset is None else max(subset, 1),  # refused later
        xflip=given.get("mirror", False),
        random_seed=given.get("seed", 0),
    )
