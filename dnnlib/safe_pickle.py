"""Unpickling that can reach a short list of names and nothing else."""

import copyreg
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, final

from dnnlib.errors import UserError
from dnnlib.util import printable


class UnsafePickleError(UserError, pickle.UnpicklingError):
    """A pickle asks for something outside the list of safe names."""


@final
class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler whose only way to code is the mapping `allowed`.

    No module is ever imported on behalf of the pickle. What no list of names can bound is the
    hashing of tuples that are nested very deep, by which a file can make it work for ever or
    overflow the stack. At worst the process ends; it runs no code.

    Args:
        file: The pickle. It must be seekable: it is looked through first, for memo indices that
            would make CPython's unpickler fill the memory.
        allowed: The object to use for (module, name), as they are written in the pickle. Pickles
            written by Python 2 name modules as Python 2 did (`__builtin__`, `copy_reg`): list
            those spellings where they are wanted. A value can be called with any arguments, and
            the pickle may try to set attributes on it and on what it returns: give builtins,
            SafeFunction, or classes of SealedType.
        encoding: Of strings that Python 2 wrote.
    """

    def __init__(
        self, file: IO[bytes], allowed: Mapping[tuple[str, str], Any], *, encoding: str = "ASCII"
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._file = file
        self._allowed = allowed

    def load(self) -> Any:
        """Read one pickled object.

        Raises:
            UnsafePickleError: The pickle asks for any other name, or has persistent ids.
        """
        _check_memo(self._file)
        # Objects in the cache of extension codes would be handed out without asking find_class.
        copyreg.clear_extension_cache()
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """The listed object for `module.name`.

        Raises:
            UnsafePickleError: It is not on the list.
        """
        try:
            return self._allowed[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"the pickle refers to {printable(f'{module}.{name}')}, which is not on the list "
                f"of safe names; nothing of it was executed"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse: a persistent id stands for an object outside the pickle."""
        raise UnsafePickleError(
            f"the pickle refers to an outside object by persistent id {printable(str(pid))}"
            if isinstance(pid, str | int)
            else "the pickle refers to an outside object by persistent id"
        )


def _check_memo(file: IO[bytes]) -> None:
    """Refuse memo indices that no pickler counts up to; the file's position stays."""
    start = file.tell()
    try:
        for count, (opcode, index, _) in enumerate(pickletools.genops(file)):
            puts = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
            if puts and isinstance(index, int) and index > count:
                raise UnsafePickleError(f"the pickle has memo index {index} at its item {count}")
    finally:
        file.seek(start)


class SafeFunction:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError(f"the pickle tries to set {name[:100]!r} on a safe name")


class SealedType(type):
    """Metaclass of classes that a pickle may instantiate and cannot change.

    Give them `__slots__`, or the pickle may set attributes on their instances.
    """

    def __setattr__(cls, name: str, value: Any) -> None:
        raise UnsafePickleError(f"the pickle tries to set {name[:100]!r} on {cls.__name__}")


class SealedDict(dict, metaclass=SealedType):
    """Stands for subclasses of dict: items and no attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if state:  # some Python versions write an empty one
            raise UnsafePickleError("a dict has attributes besides its items")
