"""Read network snapshots without running anything that they contain.

A snapshot is a pickle, and a pickle is a program. This reader lets that program reach a short list
of names, gives it inert stand-ins for most of them, and rebuilds this project's own networks from
what remains: class names, constructor arguments and tensors. It reads snapshots of this project
and of StyleGAN2-ADA-PyTorch alike; the source code inside them is never executed.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

import dnnlib
from dnnlib.safe_pickle import RestrictedUnpickler, UnsafePickleError
from torch_utils import persistence

__all__ = ["NetworkPickleError", "UnsafePickleError", "load_network_pkl"]

_MAX_DEPTH = 32  # of nested modules and containers; real snapshots stay below ten


class NetworkPickleError(ValueError):
    """The file is no network snapshot, or is damaged, or does not fit this project's networks."""


def load_network_pkl(file: BinaryIO) -> dict[str, Any]:
    """Read a network snapshot from a seekable binary file.

    Returns a dict with ``G``, ``D``, ``G_ema`` (modules on the CPU in eval mode, float32),
    ``augment_pipe`` (module or None) and ``training_set_kwargs`` (EasyDict or None).

    Raises:
        UnsafePickleError: the pickle refers to something outside the list of safe names, or a
            network in it is of an unknown class or has arguments that are no plain data.
        NetworkPickleError: anything else that keeps the file from being used.
    """
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
    except Exception as err:  # a damaged pickle can make the unpickler raise almost anything
        reason = (str(err).splitlines() or [""])[0] or type(err).__name__
        raise NetworkPickleError(
            f"not a readable network snapshot (truncated, damaged or another format): {reason}"
        ) from err


def _networks_of(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise NetworkPickleError(
            f"not a network snapshot: it holds a {type(data).__name__}, not a dict of networks"
        )
    result = {}
    for key in ("G", "D", "G_ema", "augment_pipe"):
        record = data.get(key)
        if isinstance(record, _Record):
            result[key] = _build(record, key)
        elif key == "augment_pipe" and record is None:
            result[key] = None
        else:
            found = "nothing" if record is None else f"a {type(record).__name__}"
            raise NetworkPickleError(f"not a network snapshot: {key!r} is {found}, not a network")
    kwargs = data.get("training_set_kwargs")
    if not isinstance(kwargs, dict | None):
        raise NetworkPickleError("not a network snapshot: 'training_set_kwargs' is not a dict")
    plain = None if kwargs is None else dnnlib.EasyDict(_plain(kwargs, "training_set_kwargs"))
    result["training_set_kwargs"] = plain
    return result


# ---------------------------------------------------------------------------------------------
# From records to networks


class _Node(NamedTuple):
    """A checked record: ``state`` holds plain constructor arguments, real tensors and nodes."""

    cls: type
    state: dict[str, Any]


def _build(record: "_Record", key: str) -> torch.nn.Module:
    node = _check_record(record, key)
    try:
        return persistence.rebuild_module(node.cls, node.state).eval()
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, AssertionError) as err:
        reason = (str(err).splitlines() or [""])[0] or type(err).__name__
        raise NetworkPickleError(f"cannot rebuild {key!r} ({node.cls.__name__}): {reason}") from err


def _check_record(record: "_Record", where: str, depth: int = 0) -> _Node:
    if depth > _MAX_DEPTH:
        raise NetworkPickleError(f"{where[:60]}...: modules are nested too deeply")
    try:
        cls = persistence.find_persistent_class(record.class_name)
    except LookupError as err:
        raise UnsafePickleError(f"{where}: {err}; its code is not executed") from None
    state = record.state
    owner = f"{where} ({record.class_name})"
    modules = {}
    for name, child in _dict_item(state, "_modules", owner).items():
        if child is not None and not isinstance(child, _Record):
            raise NetworkPickleError(f"{owner}: submodule {name!r} is a {type(child).__name__}")
        path = f"{where}.{name}"
        modules[name] = None if child is None else _check_record(child, path, depth + 1)
    args, kwargs = state.get("_init_args", ()), _dict_item(state, "_init_kwargs", owner)
    if not isinstance(args, tuple | list):
        raise NetworkPickleError(f"{owner}: '_init_args' is a {type(args).__name__}, not a tuple")
    checked = {
        "_init_args": tuple(_plain(a, f"{owner} argument {i}") for i, a in enumerate(args)),
        "_init_kwargs": {k: _plain(v, f"{owner} argument {k!r}") for k, v in kwargs.items()},
        "_modules": modules,
        "_non_persistent_buffers_set": set(state.get("_non_persistent_buffers_set", ())),
        "training": False,
    }
    for group in ("_parameters", "_buffers"):
        checked[group] = _tensors(_dict_item(state, group, owner), owner)
    return _Node(cls, checked)


def _dict_item(state: Mapping[str, Any], key: str, owner: str) -> dict[str, Any]:
    value = state.get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise NetworkPickleError(f"{owner}: {key!r} is not a dict with names as keys")
    return value


def _tensors(group: dict[str, Any], owner: str) -> dict[str, torch.Tensor | None]:
    for name, saved in group.items():
        if saved is not None and not isinstance(saved, _SavedTensor):
            raise NetworkPickleError(
                f"{owner}: tensor {name!r} is a {type(saved).__name__}, not a tensor"
            )
    return {name: None if saved is None else saved.tensor for name, saved in group.items()}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """Copy nested containers of None, bool, int, float and str; refuse everything else."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth > _MAX_DEPTH:
        raise NetworkPickleError(f"{where} is nested too deeply")
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, where, depth + 1) for item in value)
    if isinstance(value, _Array):
        return _plain(value.values, where, depth + 1)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, where, depth + 1) for key, item in value.items()}
    kind = value.class_name if isinstance(value, _Record) else type(value).__name__.lstrip("_")
    raise UnsafePickleError(f"{where} holds a {kind}; only plain data is accepted there")


# ---------------------------------------------------------------------------------------------
# What the pickle gets to touch. A pickle may call these with any arguments and may try to set
# attributes on them and on what they return, so all of them refuse new attributes.


class _Function:
    """A function that the pickle may call and cannot change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable):
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"the pickle tries to set {name!r} on a safe name")


class _SealedType(type):
    """Metaclass of classes that the pickle may instantiate and cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise UnsafePickleError(f"the pickle tries to set {name!r} on {cls.__name__}")


class _EasyDict(dict, metaclass=_SealedType):
    """Stands for dnnlib.EasyDict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if state:  # some Python versions write an empty one
            raise UnsafePickleError("an EasyDict has attributes besides its items")


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


class _DType(metaclass=_SealedType):
    """Stands for numpy.dtype: numbers only, no objects."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str, align: Any = False, copy: Any = True):
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise UnsafePickleError(f"numpy.dtype {code!r} is not a real number type")
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise UnsafePickleError("numpy.dtype with an unknown state")
        self._order = state[1]

    def read(self, raw: Any) -> np.ndarray:
        """The numbers in ``raw``, flat."""
        if not isinstance(raw, bytes):
            raise UnsafePickleError(f"numpy data is a {type(raw).__name__}, not bytes")
        return np.frombuffer(raw, np.dtype(self._code).newbyteorder(self._order))


class _Array(metaclass=_SealedType):
    """Stands for numpy.ndarray; ``values`` are nested lists of numbers."""

    __slots__ = ("values",)

    def __init__(self):
        self.values = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType):
            raise UnsafePickleError(f"numpy.ndarray with a {type(dtype).__name__} as its dtype")
        self.values = dtype.read(raw).reshape(shape, order="F" if fortran else "C").tolist()


def _new_record(meta: Any) -> _Record:
    if not isinstance(meta, dict):
        raise NetworkPickleError("damaged: a network is saved without its description")
    persistence.check_format(meta)
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise NetworkPickleError("damaged: a network is saved without its class name or state")
    return _Record(name, state)


def _new_storage(raw: Any) -> _Storage:
    """Read the file-in-a-pickle that torch packs a storage into, by torch's own safe reader."""
    if not isinstance(raw, bytes):
        raise UnsafePickleError(f"a tensor storage is a {type(raw).__name__}, not bytes")
    try:
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        # torch goes on to recommend its unsafe reader: keep only the name it stumbled over.
        name = re.search(r"GLOBAL ([\w.]+)", str(err))
        raise UnsafePickleError(
            f"a tensor storage refers to {name[1]}, which is not on the list of safe names"
            if name
            else "a tensor storage is not in torch's storage format"
        ) from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UnsafePickleError(f"a tensor storage holds a {type(storage).__name__}")
    return _Storage(storage._untyped_storage, storage.dtype)  # the public way warns


def _new_tensor(storage, offset, size, stride, requires_grad=False, *_unused) -> _SavedTensor:
    """``torch._utils._rebuild_tensor`` and ``_v2``; hooks and metadata are dropped."""
    if not isinstance(storage, _Storage):
        raise NetworkPickleError(f"damaged: a tensor lies in a {type(storage).__name__}")
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or not all(
        type(n) is int and n >= 0 for n in (offset, *size, *stride)
    ):
        raise NetworkPickleError("damaged: a tensor with an impossible shape")
    # torch would enlarge the storage to whatever the shape asks for.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.data.nbytes() // storage.dtype.itemsize:
        raise NetworkPickleError("damaged: a tensor is larger than its storage")
    tensor = torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, size, stride)
    return _SavedTensor(tensor.requires_grad_(bool(requires_grad)))


def _new_parameter(saved, requires_grad=True, *_unused) -> _SavedTensor:
    """``torch._utils._rebuild_parameter`` and ``_with_state``; hooks and state are dropped."""
    if not isinstance(saved, _SavedTensor):
        raise NetworkPickleError(f"damaged: a parameter is a {type(saved).__name__}")
    return _SavedTensor(saved.tensor.detach().requires_grad_(bool(requires_grad)))


def _new_scalar(dtype: Any, raw: Any) -> bool | int | float:
    if not isinstance(dtype, _DType):
        raise UnsafePickleError(f"numpy scalar with a {type(dtype).__name__} as its dtype")
    return dtype.read(raw)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """``_codecs.encode``, which old pickle protocols spell bytes with."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafePickleError(f"_codecs.encode is only accepted for latin1, not {encoding!r}")
    return text.encode("latin1")


def _allowed_names() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("dnnlib.util", "EasyDict"): _EasyDict,
        ("dnnlib", "EasyDict"): _EasyDict,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_new_record),
        ("torch.storage", "_load_from_bytes"): _Function(_new_storage),
        ("torch._utils", "_rebuild_tensor"): _Function(_new_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Function(_new_tensor),
        ("torch._utils", "_rebuild_parameter"): _Function(_new_parameter),
        ("torch._utils", "_rebuild_parameter_with_state"): _Function(_new_parameter),
        ("torch", "Size"): _Function(lambda sizes=(): tuple(sizes)),
        ("torch", "device"): _Function(lambda *args: ":".join(str(arg) for arg in args)),
        ("numpy", "dtype"): _DType,
        ("numpy", "ndarray"): "numpy.ndarray",
        ("_codecs", "encode"): _Function(_encode),
    }
    for module in ("builtins", "__builtin__"):  # the second is its name in protocol 2
        allowed[module, "set"] = set
        allowed[module, "bytes"] = _Function(lambda: b"")  # how protocol 2 spells empty bytes
    for package in ("numpy.core", "numpy._core"):
        allowed[f"{package}.multiarray", "scalar"] = _Function(_new_scalar)
        allowed[f"{package}.multiarray", "_reconstruct"] = _Function(lambda *_: _Array())
    # Types that old pickles mention without using them become their own names.
    for kind in ("Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long"):
        allowed["torch", f"{kind}Storage"] = f"torch.{kind}Storage"
    allowed["torch", "BoolStorage"] = "torch.BoolStorage"
    for dtype in ("float16", "bfloat16", "float32", "float64", "uint8", "int32", "int64", "bool"):
        allowed["torch", dtype] = f"torch.{dtype}"
    return allowed


_ALLOWED = _allowed_names()
