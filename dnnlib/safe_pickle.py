"""Unpickling that can reach a short list of names and nothing else."""

import copyreg
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO, final

__all__ = ["RestrictedUnpickler", "UnsafePickleError"]


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle asks for something outside the list of safe names."""


@final
class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler whose only way to code is the mapping ``allowed``.

    ``allowed`` maps (module, name), as they are written in the pickle, to the object to use.
    No module is ever imported on behalf of the pickle. Pickles written by Python 2 name modules
    as Python 2 did (``__builtin__``, ``copy_reg``): list those spellings where they are wanted.

    A value of ``allowed`` can be called with any arguments, and the pickle may try to set
    attributes on it: give builtins, or functions and classes made for the purpose.

    Raises UnsafePickleError, naming the thing, for every other global and for persistent ids.
    """

    def __init__(
        self, file: BinaryIO, allowed: Mapping[tuple[str, str], Any], *, encoding: str = "ASCII"
    ):
        super().__init__(file, encoding=encoding)
        self._allowed = allowed

    def load(self) -> Any:
        """Read one pickled object; see the class for what is refused."""
        # Objects in the cache of extension codes would be handed out without asking find_class.
        copyreg.clear_extension_cache()
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """Return the listed object for ``module.name`` or raise UnsafePickleError."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"the pickle refers to {module}.{name}, which is not on the list of safe names; "
                f"nothing of it was executed"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse: a persistent id stands for an object outside the pickle."""
        raise UnsafePickleError(f"the pickle refers to an outside object by persistent id {pid!r}")
