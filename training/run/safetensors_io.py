"""Networks as safetensors with a JSON file beside: no pickle at all, for other programs.

NAME.safetensors holds the tensors of G, D, G_ema and augment_pipe as NETWORK.TENSOR; NAME.json
holds their class names and constructor arguments, and how the data set was opened.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import safetensors
import safetensors.torch
import torch

from dnnlib import families
from dnnlib.errors import UserError
from dnnlib.families import NETWORKS
from dnnlib.util import EasyDict, atomic_write, first_line, printable
from torch_utils import persistence
from training.run.snapshot_file import save_snapshot

FORMAT = "coopinit-networks-1"
MAX_JSON_BYTES = 1 << 24


class SafetensorsError(UserError, ValueError):
    """Files that hold no networks, or not these."""


def export_networks(networks: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write networks as `path`, which ends in .safetensors, and the JSON file beside it.

    Args:
        networks: What `legacy.load_network_pkl` returns.
        path: The file to write.

    Raises:
        OSError: One of the files cannot be written, or the JSON file is of something else.
    """
    beside = Path(path).with_suffix(".json")
    if beside.exists():
        _require_own(beside)
    nets = {name: net for name, net in networks.items() if isinstance(net, torch.nn.Module)}
    tensors = {
        f"{name}.{key}": tensor.contiguous().clone()
        for name, net in nets.items()
        for key, tensor in net.state_dict().items()
    }
    description = {
        "format": FORMAT,
        "networks": {
            name: {"class": type(net).__name__, "args": net.init_args, "kwargs": net.init_kwargs}
            for name, net in nets.items()
        },
        "training_set_kwargs": networks["training_set_kwargs"],
    }
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    with atomic_write(path) as file:
        file.write(data)
    with atomic_write(beside) as file:
        file.write(json.dumps(description, indent=1).encode())


def import_networks(path: str | os.PathLike) -> dict[str, Any]:
    """The networks of a .safetensors file and the JSON file beside it.

    Returns:
        As `legacy.load_network_pkl`.

    Raises:
        SafetensorsError: One of the files is damaged, or they do not fit each other.
        OSError: One of them cannot be read.
    """
    path = Path(path)
    try:
        description = _read_description(path.with_suffix(".json"))
        tensors = safetensors.torch.load_file(path)
        _require_described(tensors, description["networks"])
        found: dict[str, Any] = {name: None for name in NETWORKS}
        for name, record in description["networks"].items():
            found[name] = _rebuild(name, record, tensors)
        kwargs = description["training_set_kwargs"]
        found["training_set_kwargs"] = None if kwargs is None else EasyDict(kwargs)
    except OSError:
        raise
    except Exception as error:  # damaged files can make parsers and constructors raise anything
        raise SafetensorsError(f"'{path}' cannot be used: {first_line(error)}") from error
    return found


def save_imported(networks: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write what `import_networks` returned as a network snapshot.

    Raises:
        OSError: The file cannot be written.
    """
    nets = {name: net for name, net in networks.items() if name != "training_set_kwargs"}
    save_snapshot(path, training_set_kwargs=networks["training_set_kwargs"] or {}, **nets)


def _read_description(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise SafetensorsError(f"'{path.name}' is larger than {MAX_JSON_BYTES} bytes")
    description = json.loads(text)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise SafetensorsError(f"'{path.name}' describes no networks of this format")
    networks = _item(description, "networks", dict, path.name)
    for name, record in networks.items():
        if name not in (known := families.snapshot_names()):
            raise SafetensorsError(f"'{printable(name)}' is none of {', '.join(known)}")
        if not isinstance(record, dict):
            raise SafetensorsError(f"'{name}' in '{path.name}' is not a dict")
        for key, kind in (("class", str), ("args", list), ("kwargs", dict)):
            _item(record, key, kind, f"{name} in {path.name}")
    if missing := [name for name in NETWORKS[:3] if name not in networks]:
        raise SafetensorsError(f"{', '.join(missing)} is missing in '{path.name}'")
    _item(description, "training_set_kwargs", dict | None, path.name)
    return description


def _require_own(path: Path) -> None:
    try:
        _read_description(path)
    except ValueError as error:
        raise FileExistsError(f"'{path}' is there, and describes no networks") from error


def _item(record: Mapping[str, Any], key: str, kind: type | UnionType, where: str) -> Any:
    """An item of a dict that was read; SafetensorsError where it is none or of another kind."""
    if key not in record:
        raise SafetensorsError(f"'{where}' lacks '{key}'")
    if not isinstance(record[key], kind):
        wanted = kind.__name__ if isinstance(kind, type) else kind
        raise SafetensorsError(
            f"'{key}' in '{where}' is of type {type(record[key]).__name__}, not {wanted}"
        )
    return record[key]


def _require_described(tensors: Collection[str], networks: Mapping[str, Any]) -> None:
    for key in tensors:
        if key.split(".", 1)[0] not in networks:
            raise SafetensorsError(
                f"tensor '{printable(key)}' belongs to no network that is described"
            )


def _rebuild(
    name: str, record: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> torch.nn.Module:
    cls = persistence.find_persistent_class(record["class"])
    own = {key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}.")}
    state = dict(
        _init_args=tuple(record["args"]),
        _init_kwargs=record["kwargs"],
        _parameters=own,
        _buffers={},
        _modules={},
        training=False,
    )
    return persistence.rebuild_module(cls, state)
