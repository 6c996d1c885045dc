"""Families of networks that can be trained here: the only list of them, a line each.

It names what lies far above it, which is imported when it is needed, so that every room may ask.
"""

import importlib
from typing import Any, NamedTuple


class Family(NamedTuple):
    """Where the parts of a family are: "module:Class", and modules."""

    settings: str  # a subclass of `training.settings.config.TrainingConfig`; imports no torch
    model: str  # fulfils `training.model.Model`
    sampler: str  # fulfils `torch_utils.sampler.Sampler`; takes a network
    networks: tuple[str, ...]  # modules whose classes a snapshot may name; no two share a name
    others: tuple[str, ...] = ()  # names of what a snapshot holds beside NETWORKS
    dataset: str = "training.dataset:ImageFolderDataset"  # what else has its items and members


NETWORKS = ("G", "D", "G_ema", "augment_pipe")  # of every snapshot; the last one may be None

FAMILIES = {
    "stylegan2": Family(
        settings="models.stylegan2.settings:StyleGAN2Config",
        model="models.stylegan2.model:StyleGAN2Model",
        sampler="models.stylegan2.sampler:StyleGAN2Sampler",
        networks=("training.networks", "training.augment"),
    )
}


def load(name: str) -> Any:
    """The object that `module:name` says."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def network_modules() -> tuple[str, ...]:
    """Modules of all families whose classes a snapshot may name."""
    return tuple(module for family in FAMILIES.values() for module in family.networks)


def snapshot_names() -> tuple[str, ...]:
    """Names of all networks that a snapshot of any family may hold."""
    return (*NETWORKS, *(name for family in FAMILIES.values() for name in family.others))


def family_of(network: object) -> str:
    """Name of the family that a network belongs to, by the module of its class.

    Raises:
        LookupError: To none.
    """
    module = type(network).__module__
    for name, family in FAMILIES.items():
        if module in family.networks:
            return name
    raise LookupError(f"{type(network).__name__} belongs to no family of networks")
