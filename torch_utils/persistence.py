"""Modules that are pickled together with the source of the file that defines them.

The pickle of a persistent object calls `_reconstruct_persistent_obj(meta)` of this module with
`meta = {"type": "class", "version": 6, "module_src", "class_name", "state"}`: the format of
StyleGAN2-ADA-PyTorch. The source lets a program that has never seen the class rebuild it, by
executing it. This module writes the source, and never executes it.
"""

import contextlib
import copy
import functools
import importlib
import inspect
import itertools
import pickle
import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any, TypeVar

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from dnnlib import families

FORMAT_VERSION = 6
_MAX_ARGUMENT = 1 << 20  # integers in saved constructor arguments: sizes and numbers of layers

_T = TypeVar("_T", bound=type)
_classes: dict[tuple[str, str], type] = {}  # (module, class name) -> decorated class
_sources: dict[str, str | None] = {}  # module -> its source text, None where there is none


def persistent_class(cls: _T) -> _T:
    """Class decorator: instances remember how they were made and are pickled with their source.

    Constructor arguments are kept as `_init_args` (tuple) and `_init_kwargs` (dict) in the
    object's state, and can be read as `init_args` and `init_kwargs`. A subclass of a
    persistent class must be decorated too. `copy.deepcopy` gives an independent copy; tensors
    that are results of a differentiable computation are copied without their history.
    """
    plain_init = cls.__init__

    @functools.wraps(plain_init)
    def recording_init(self: Any, *args: Any, **kwargs: Any) -> None:
        # An inherited constructor that is called by a decorated subclass must not overwrite.
        if "_init_args" not in self.__dict__:
            self.__dict__["_init_args"] = _copy_containers(args)
            self.__dict__["_init_kwargs"] = _copy_containers(kwargs)
        plain_init(self, *args, **kwargs)

    for name, member in {
        "__init__": recording_init,
        "__reduce__": _reduce,
        "__deepcopy__": _deepcopy,
        "init_args": property(lambda self: _copy_containers(self._init_args)),
        "init_kwargs": property(lambda self: _copy_containers(self._init_kwargs)),
    }.items():
        setattr(cls, name, member)
    _classes[cls.__module__, cls.__name__] = cls
    # Read now: the file may be edited later, while the program runs on.
    _module_source(cls.__module__)
    return cls


def find_persistent_class(class_name: str) -> type:
    """The persistent class of that name in this project's network modules.

    Raises:
        LookupError: There is none; the message names the class.
    """
    found = []
    for module in families.network_modules():
        importlib.import_module(module)
        found += [_classes[module, class_name]] if (module, class_name) in _classes else []
    if not found:
        raise LookupError(f"no network class is called {class_name!r}")
    # A pickle says nothing else of a class, so that families must not share the names of theirs.
    assert len(found) == 1, f"two families have a class {class_name}"
    return found[0]


def tensors_of_state(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, tensor) of all parameters and persistent buffers, named as in state_dict().

    Args:
        state: The `__dict__` of a module. Nested modules may be modules or any objects that keep
            such a dict as their attribute `state`.
        prefix: Put before each name.
    """
    passing = state.get("_non_persistent_buffers_set", ())
    for group in ("_parameters", "_buffers"):
        for name, tensor in state[group].items():
            if tensor is not None and name not in passing:
                yield prefix + name, tensor
    for name, child in state["_modules"].items():
        if child is not None:
            inner = child.__dict__ if isinstance(child, torch.nn.Module) else child.state
            yield from tensors_of_state(inner, f"{prefix}{name}.")


def rebuild_module(cls: type, state: Mapping[str, Any]) -> torch.nn.Module:
    """Construct `cls` from the arguments in `state` and copy the saved tensors by name.

    Args:
        cls: A persistent class.
        state: The `__dict__` that was saved.

    Returns:
        The module on the CPU in its own dtypes, with the saved training mode and requires_grad
        flags.

    Raises:
        ValueError: A tensor, which is named, is missing, left over, of another shape or no real
            number.
    """
    args, kwargs = state["_init_args"], state["_init_kwargs"]
    if any(isinstance(n, int) and abs(n) > _MAX_ARGUMENT for n in _values([args, kwargs])):
        raise ValueError(f"{cls.__name__} has an argument above {_MAX_ARGUMENT}")
    saved = dict(tensors_of_state(state))
    # On the meta device first, where tensors take no memory: arguments may ask for anything.
    with _at_most(len(saved), cls.__name__), torch.device("meta"):
        own = cls(*args, **kwargs).state_dict(keep_vars=True)
    _require_same_names(cls.__name__, own.keys(), saved.keys())
    for name, target in own.items():
        _require_fit(target, saved[name], f"{cls.__name__}.{name}")
    # The initial values are overwritten: drawing them must not disturb the caller's random state.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        module = cls(*args, **kwargs)
    for name, target in module.state_dict(keep_vars=True).items():
        with torch.no_grad():
            target.copy_(saved[name])
        if isinstance(target, torch.nn.Parameter):
            target.requires_grad_(saved[name].requires_grad)
    return module.train(bool(state["training"]))


@contextlib.contextmanager
def _at_most(count: int, owner: str) -> Iterator[None]:
    """Context that ends a constructor whose loops make more parameters than were saved."""
    made = itertools.count(1)

    def check(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and next(made) > count:
            raise ValueError(
                f"saved {owner} lacks tensors: it has {count}, its arguments ask for more"
            )

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _require_same_names(owner: str, own: Set[str], saved: Set[str]) -> None:
    if missing := own - saved:
        raise ValueError(f"saved {owner} lacks {len(missing)} tensors, first {min(missing)!r}")
    if extra := saved - own:
        raise ValueError(
            f"saved {owner} has {len(extra)} tensors that the class has not, first {min(extra)!r}"
        )


def _require_fit(target: torch.Tensor, source: torch.Tensor, name: str) -> None:
    if source.shape != target.shape:
        raise ValueError(
            f"saved tensor {name!r} has shape {list(source.shape)}, "
            f"its place has {list(target.shape)}"
        )
    if source.is_floating_point() != target.is_floating_point() or source.is_complex():
        raise ValueError(f"saved tensor {name!r} has dtype {source.dtype}, not {target.dtype}")


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """Rebuild a pickled persistent object as this project's class of the same name.

    This is the name that pickles call. `meta["module_src"]` is compared, never executed: equal
    source means that the saved state fits as it is; otherwise the object is constructed anew and
    its tensors are copied by name (see rebuild_module).
    """
    check_format(meta)
    source, name, state = meta["module_src"], meta["class_name"], meta["state"]
    for (module, known), cls in list(_classes.items()):
        if known == name and _sources[module] == source:
            return _restore(cls, state)
    try:
        cls = find_persistent_class(name)
    except LookupError as error:
        raise pickle.UnpicklingError(
            f"{error}; import the module that defines it before unpickling"
        ) from None
    if _sources[cls.__module__] == source:
        return _restore(cls, state)
    return rebuild_module(cls, state)


def check_format(meta: Mapping[str, Any]) -> None:
    """Check that `meta` is of a kind and version that can be read.

    Raises:
        pickle.UnpicklingError: It is not.
    """
    kind, version = meta.get("type"), meta.get("version")
    if kind != "class" or version not in range(1, FORMAT_VERSION + 1):
        raise pickle.UnpicklingError(
            f"a persistent object of type {kind!r}, format version {version!r}, cannot be read; "
            f"expected 'class', 1 to {FORMAT_VERSION}"
        )


def _restore(cls: Any, state: Mapping[str, Any]) -> Any:
    obj = cls.__new__(cls)
    if isinstance(obj, torch.nn.Module):
        obj.__setstate__(dict(state))  # it also adds the hooks that a newer torch expects
    else:
        obj.__dict__.update(state)
    return obj


def _reduce(self: Any) -> tuple[Any, tuple[dict[str, Any]]]:
    cls = type(self)
    if cls.__dict__.get("__reduce__") is not _reduce:
        raise pickle.PicklingError(
            f"{cls.__qualname__} derives from a persistent class: "
            f"decorate it with @persistent_class too"
        )
    source = _module_source(cls.__module__)
    if source is None:
        raise pickle.PicklingError(
            f"the source of {cls.__qualname__} cannot be read: define it in a file"
        )
    meta = {
        "type": "class",
        "version": FORMAT_VERSION,
        "module_src": source,
        "class_name": cls.__name__,
        "state": self.__dict__,
    }
    return _reconstruct_persistent_obj, (meta,)


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    cls: Any = type(self)
    twin = cls.__new__(cls)
    memo[id(self)] = twin
    for value in _values(self.__dict__):
        # torch refuses to deep-copy these; the memo may know one from an enclosing module.
        if isinstance(value, torch.Tensor) and not value.is_leaf and id(value) not in memo:
            memo[id(value)] = value.detach().clone()
    twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return twin


def _values(container: Any) -> Iterator[Any]:
    """The leaves of nested dicts, lists and tuples."""
    if isinstance(container, dict):
        container = list(container.values())
    if not isinstance(container, list | tuple):
        yield container
        return
    for item in container:
        yield from _values(item)


def _copy_containers(value: Any) -> Any:
    """Copy nested dicts, lists and tuples, so that later changes to the arguments do not show."""
    if isinstance(value, dict):
        return {key: _copy_containers(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copy_containers(item) for item in value)
    return value


def _module_source(module: str) -> str | None:
    if module not in _sources:
        try:
            _sources[module] = inspect.getsource(sys.modules[module])
        except (OSError, TypeError):  # typed at a prompt, or built in
            _sources[module] = None
    return _sources[module]
