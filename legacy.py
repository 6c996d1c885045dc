"""Read network snapshots without running anything that they contain.

A snapshot is a pickle, and a pickle is a program. This reader lets that program reach a short list
of names, gives it inert stand-ins for most of them, and rebuilds this project's own networks from
what remains: class names, constructor arguments and tensors. It reads snapshots of this project
and of StyleGAN2-ADA-PyTorch alike; the source code inside them is never executed.
"""

import io
import math
import pickle
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import torch

import dnnlib
from dnnlib import families
from dnnlib.errors import UserError
from dnnlib.safe_numpy import NUMPY_NAMES, PickledArray
from dnnlib.safe_pickle import RestrictedUnpickler, SafeFunction, SealedDict, UnsafePickleError
from dnnlib.util import first_line
from torch_utils import persistence

_MAX_DEPTH = 32  # of nested modules and containers; real snapshots stay below ten
_MAX_ITEMS = 200_000  # of modules and arguments together; real snapshots have a few thousand
_MAX_NAME = 200  # characters of the name of a tensor, module or argument


class NetworkPickleError(UserError, ValueError):
    """The file is no network snapshot, or is damaged, or does not fit this project's networks."""


def load_network_pkl(file: BinaryIO) -> dict[str, Any]:
    """Read a network snapshot from a binary file.

    Returns:
        A dict with `G`, `D`, `G_ema` (modules on the CPU in eval mode, float32), `augment_pipe`
        (module or None) and `training_set_kwargs` (EasyDict or None).

    Raises:
        UnsafePickleError: The pickle refers to something outside the list of safe names, or a
            network in it is of an unknown class or has arguments that are no plain data.
        NetworkPickleError: Anything else that keeps the file from being used.
    """
    if not file.seekable():  # a pipe
        file = io.BytesIO(file.read())
    start = file.read(2)
    if len(start) == 2 and start[0] != pickle.PROTO[0]:
        # The oldest pickles start otherwise, but so do pictures and archives, and reading those
        # as pickles ends in riddles.
        raise NetworkPickleError(f"not a network snapshot: the file starts with {start!r}")
    file.seek(-len(start), io.SEEK_CUR)
    try:
        return _networks_of(RestrictedUnpickler(file, _ALLOWED).load())
    except (UnsafePickleError, NetworkPickleError):
        raise
    except RecursionError:
        raise NetworkPickleError("not a network snapshot: nested too deeply") from None
    except Exception as error:  # a damaged pickle can make the unpickler raise almost anything
        raise NetworkPickleError(
            "not a readable network snapshot (truncated, damaged or another format): "
            + first_line(error)
        ) from error


def _networks_of(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise NetworkPickleError(
            f"not a network snapshot: it holds a {type(data).__name__}, not a dict of networks"
        )
    result, checker = {}, _Checker()
    for key in dict.fromkeys(families.snapshot_names()):
        record = data.get(key)
        if isinstance(record, _Record):
            result[key] = _build(checker.record(record, key), key)
        elif key == "augment_pipe" and record is None:
            result[key] = None
        elif key not in families.NETWORKS and record is None:
            continue  # of another family
        else:
            found = "nothing" if record is None else f"a {type(record).__name__}"
            raise NetworkPickleError(f"not a network snapshot: {key!r} is {found}, not a network")
    kwargs = data.get("training_set_kwargs")
    if not isinstance(kwargs, dict | None):
        raise NetworkPickleError("not a network snapshot: 'training_set_kwargs' is not a dict")
    plain = checker.plain(kwargs, "training_set_kwargs")
    result["training_set_kwargs"] = None if plain is None else dnnlib.EasyDict(plain)
    return result


# ---------------------------------------------------------------------------------------------
# From records to networks


class _Node(NamedTuple):
    """A checked record: `state` holds plain constructor arguments, real tensors and nodes."""

    cls: type
    state: dict[str, Any]


def _build(node: _Node, key: str) -> torch.nn.Module:
    try:
        return persistence.rebuild_module(node.cls, node.state).eval()
    except Exception as error:  # constructors raise anything when their arguments make no sense
        raise NetworkPickleError(
            f"cannot rebuild {key!r} ({node.cls.__name__}): {first_line(error)}"
        ) from error


class _Checker:
    """Turns records into nodes, within one allowance of items for a whole load.

    Without it a file of a kilobyte could take for ever: what it refers to twice is visited twice,
    what lies in that four times, and so on.
    """

    def __init__(self) -> None:
        self._left = _MAX_ITEMS

    def record(self, record: "_Record", where: str, depth: int = 0) -> _Node:
        """Check a record with all that is nested in it."""
        self._visit(where, depth)
        try:
            cls = persistence.find_persistent_class(record.class_name)
        except LookupError as error:
            raise UnsafePickleError(
                f"{where[-100:]}: {first_line(error)}; its code is not executed"
            ) from None
        state, owner = record.state, f"{where[-100:]} ({record.class_name})"
        modules = {}
        for name, child in self._dict_item(state, "_modules", owner).items():
            if child is not None and not isinstance(child, _Record):
                raise NetworkPickleError(f"{owner}: submodule {name!r} is a {type(child).__name__}")
            path = f"{where}.{name}"
            modules[name] = None if child is None else self.record(child, path, depth + 1)
        args = state.get("_init_args", ())
        if not isinstance(args, tuple | list):
            raise NetworkPickleError(
                f"{owner}: '_init_args' is a {type(args).__name__}, not a tuple"
            )
        kwargs = self._dict_item(state, "_init_kwargs", owner)
        passing = self.plain(state.get("_non_persistent_buffers_set", ()), owner)
        checked = {
            "_init_args": tuple(self.plain(a, f"{owner} argument {i}") for i, a in enumerate(args)),
            "_init_kwargs": {
                k: self.plain(v, f"{owner} argument {k!r}") for k, v in kwargs.items()
            },
            "_modules": modules,
            "_non_persistent_buffers_set": set(passing),
            "training": False,
        }
        for group in ("_parameters", "_buffers"):
            checked[group] = _tensors(self._dict_item(state, group, owner), owner)
        return _Node(cls, checked)

    def plain(self, value: Any, where: str, depth: int = 0) -> Any:
        """Copy nested containers of None, bool, int, float and str; refuse everything else."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, PickledArray):
            self._visit(where, depth, value.array.size)
            return value.array.tolist()
        if type(value) in (list, tuple, set):
            self._visit(where, depth, len(value))
            return type(value)(self.plain(item, where, depth + 1) for item in value)
        if isinstance(value, dict) and all(map(_is_name, value)):
            self._visit(where, depth, len(value))
            return {key: self.plain(item, where, depth + 1) for key, item in value.items()}
        kind = type(value).__name__
        kind = repr(value.class_name[:100]) if isinstance(value, _Record) else kind.lstrip("_")
        raise UnsafePickleError(f"{where} holds a {kind}; only plain data is accepted there")

    def _visit(self, where: str, depth: int, items: int = 0) -> None:
        self._left -= 1 + items
        if depth > _MAX_DEPTH:
            raise NetworkPickleError(f"{where[:60]}...: nested too deeply")
        if self._left < 0:
            raise NetworkPickleError(f"more than {_MAX_ITEMS} items; no network has so many")

    def _dict_item(self, state: Mapping[str, Any], key: str, owner: str) -> dict[str, Any]:
        value = state.get(key)
        if not isinstance(value, dict) or not all(map(_is_name, value)):
            raise NetworkPickleError(f"{owner}: {key!r} is not a dict with names as keys")
        self._visit(owner, 0, len(value))
        return value


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= _MAX_NAME


def _tensors(group: dict[str, Any], owner: str) -> dict[str, torch.Tensor | None]:
    for name, saved in group.items():
        if saved is not None and not isinstance(saved, _SavedTensor):
            raise NetworkPickleError(
                f"{owner}: tensor {name!r} is a {type(saved).__name__}, not a tensor"
            )
    return {name: None if saved is None else saved.tensor for name, saved in group.items()}


# ---------------------------------------------------------------------------------------------
# What the pickle gets to touch. A pickle may call these with any arguments and may try to set
# attributes on them and on what they return, so all of them refuse new attributes.


class _Record(NamedTuple):
    """A persistent object, not rebuilt yet."""

    class_name: str
    state: dict[str, Any]


class _Storage(NamedTuple):
    """The numbers of a tensor."""

    data: torch.UntypedStorage
    dtype: torch.dtype


class _SavedTensor(NamedTuple):
    """A tensor that the pickle can pass on and cannot change."""

    tensor: torch.Tensor


def _new_record(meta: Any) -> _Record:
    if not isinstance(meta, dict):
        raise NetworkPickleError("damaged: a network is saved without its description")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise NetworkPickleError("damaged: a network is saved without its class name or state")
    if not isinstance(meta.get("type"), str) or not isinstance(meta.get("version"), int):
        raise NetworkPickleError("damaged: a network is saved without its format")
    persistence.check_format(meta)
    return _Record(name, state)


def _new_storage(raw: Any) -> _Storage:
    """Read the file-in-a-pickle that torch packs a storage into, by torch's own safe reader."""
    if not isinstance(raw, bytes):
        raise UnsafePickleError(f"a tensor storage is a {type(raw).__name__}, not bytes")
    if raw.startswith(b"PK"):  # torch never packs a storage so, and a zip can unpack to terabytes
        raise UnsafePickleError("a tensor storage is a zip, not in torch's storage format")
    try:
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch continues by recommending its unsafe reader: keep only the name it stumbled over.
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UnsafePickleError(
            f"a tensor storage refers to {name[1][:100]}, which is not on the list of safe names"
            if name
            else "a tensor storage is not in torch's storage format"
        ) from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UnsafePickleError(f"a tensor storage holds a {type(storage).__name__}")
    return _Storage(storage._untyped_storage, storage.dtype)  # the public way warns


def _new_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, *_unused: Any
) -> _SavedTensor:
    """`torch._utils._rebuild_tensor` and `_v2`; hooks and metadata are dropped."""
    if not isinstance(storage, _Storage):
        raise NetworkPickleError(f"damaged: a tensor lies in a {type(storage).__name__}")
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or not all(
        type(n) is int and n >= 0 for n in (offset, *size, *stride)
    ):
        raise NetworkPickleError("damaged: a tensor with an impossible shape")
    # torch would enlarge the storage to whatever the shape asks for, and a stride of 0 would let
    # one number stand for any shape.
    available = storage.data.nbytes() // storage.dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= available or math.prod(size) > available):
        raise NetworkPickleError("damaged: a tensor is larger than its storage")
    tensor = torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, size, stride)
    return _SavedTensor(tensor.requires_grad_(bool(requires_grad)))


def _new_parameter(saved: Any, requires_grad: Any = True, *_unused: Any) -> _SavedTensor:
    """`torch._utils._rebuild_parameter` and `_with_state`; hooks and state are dropped."""
    if not isinstance(saved, _SavedTensor):
        raise NetworkPickleError(f"damaged: a parameter is a {type(saved).__name__}")
    return _SavedTensor(saved.tensor.detach().requires_grad_(bool(requires_grad)))


def _allowed_names() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        **NUMPY_NAMES,
        ("collections", "OrderedDict"): SealedDict,
        ("dnnlib.util", "EasyDict"): SealedDict,
        ("dnnlib", "EasyDict"): SealedDict,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): SafeFunction(_new_record),
        ("torch.storage", "_load_from_bytes"): SafeFunction(_new_storage),
        ("torch._utils", "_rebuild_tensor"): SafeFunction(_new_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): SafeFunction(_new_tensor),
        ("torch._utils", "_rebuild_parameter"): SafeFunction(_new_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): SafeFunction(_new_parameter),
        ("torch", "Size"): SafeFunction(lambda sizes=(): tuple(sizes)),
        ("torch", "device"): SafeFunction(lambda *_: "torch.device"),
    }
    for module in ("builtins", "__builtin__"):  # the second is its name in protocol 2
        allowed[module, "set"] = set
        allowed[module, "bytes"] = SafeFunction(lambda: b"")  # how protocol 2 spells empty bytes
    # Types that old pickles mention without using them become their own names.
    for kind in ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long"):
        allowed["torch", f"{kind}Storage"] = f"torch.{kind}Storage"
    allowed["torch", "BoolStorage"] = "torch.BoolStorage"
    for dtype in ("float16", "bfloat16", "float32", "float64", "uint8", "int32", "int64", "bool"):
        allowed["torch", dtype] = f"torch.{dtype}"
    return allowed


_ALLOWED = _allowed_names()
