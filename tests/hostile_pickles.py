"""Pickles that try to do harm, or to reach what they should not, for the tests of legacy."""

import copyreg
import functools
import importlib
import io
import operator
import os
import pickle
import shutil
import subprocess
import webbrowser

import numpy as np
import torch

from torch_utils.persistence import _reconstruct_persistent_obj


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Unknown:
    """A class that no list of safe names has."""


class IdPickler(pickle.Pickler):
    def persistent_id(self, obj):
        return "elsewhere" if obj is Unknown else None


def touch(sentinel):
    return f"touch '{sentinel}'"


def code(sentinel):
    return f"import pathlib; pathlib.Path({str(sentinel)!r}).touch()"


def called(function, *args):
    return pickle.dumps({"G": Call(function, *args)})


def record(class_name, sentinel, **changes):
    """A persistent object whose source would leave a trace."""
    state = dict(
        _init_args=(), _init_kwargs={}, _parameters={}, _buffers={}, _modules={}, training=False
    )
    meta = dict(type="class", version=6, module_src=code(sentinel), class_name=class_name)
    return Call(_reconstruct_persistent_obj, dict(meta, state={**state, **changes}))


def torch_file(obj, zipped):
    """The bytes of a torch.save() file."""
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def in_storage(sentinel, zipped=False):
    hostile = torch_file(Call(os.system, touch(sentinel)), zipped)
    return called(torch.storage._load_from_bytes, hostile)


def getattr_chain(sentinel):
    # getattr(__import__("os"), "system")(command), spelled in opcodes
    command = pickle.dumps(touch(sentinel), 0)[:-1]
    return (
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(" + command + b"tR."
    )


def setattr_on_a_name(module, name):
    # BUILD with (None, {...}) sets attributes on whatever is on the stack.
    return f"c{module}\n{name}\n(N(S'update'\nNdtb.".encode()


def by_extension_code(_sentinel):
    copyreg.add_extension("os", "system", 0xF2)
    copyreg.remove_extension("os", "system", 0xF2)
    return b"\x82\xf2."


def with_persistent_id(_sentinel):
    file = io.BytesIO()
    IdPickler(file).dump({"G": Unknown})
    return file.getvalue()


PROTOCOL_2 = b"\x80\x02"  # so that spelled-out pickles look like those of today
SYSTEM = f"{os.system.__module__}.system"
REBUILD = "torch_utils.persistence", "_reconstruct_persistent_obj"
HOSTILE = {
    # Those marked True in the last column do their work when plain pickle reads them.
    "os.system": (lambda s: called(os.system, touch(s)), SYSTEM, True),
    "eval": (lambda s: called(eval, f"exec({code(s)!r})"), "builtins.eval", True),
    "exec": (lambda s: called(exec, code(s)), "builtins.exec", True),
    "getattr chain": (getattr_chain, "builtins.getattr", True),
    "__import__": (lambda _: called(__import__, "antigravity"), "builtins.__import__", False),
    "import_module": (
        lambda _: called(importlib.import_module, "antigravity"),
        "importlib.import_module",
        False,
    ),
    "Popen": (lambda s: called(subprocess.Popen, ["touch", str(s)]), "subprocess.Popen", False),
    "check_output": (
        lambda s: called(subprocess.check_output, ["touch", str(s)]),
        "subprocess.check_output",
        True,
    ),
    "INST opcode": (lambda s: f'(S"{touch(s)}"\nios\nsystem\n.'.encode(), "os.system", True),
    "OBJ opcode": (lambda s: f'(cos\nsystem\nS"{touch(s)}"\no.'.encode(), "os.system", True),
    "Python 2 name": (
        lambda s: f"c__builtin__\nexec\n(S{code(s)!r}\ntR.".encode(),
        "__builtin__.exec",
        True,
    ),
    "in a storage": (in_storage, SYSTEM, True),
    "in a zipped storage": (lambda s: in_storage(s, zipped=True), "storage is a zip", True),
    "storage is text": (
        lambda _: called(torch.storage._load_from_bytes, "x"),
        "storage is a str",
        False,
    ),
    "torch.load": (lambda s: called(torch.load, str(s)), "torch.serialization.load", False),
    "unknown class": (lambda _: pickle.dumps({"G": Unknown()}), "hostile_pickles.Unknown", False),
    "module_src": (lambda s: pickle.dumps({"G": record("Evil", s)}), "'Evil'", False),
    "module_src in a submodule": (
        lambda s: pickle.dumps({"G": record("Generator", s, _modules={"x": record("Evil", s)})}),
        "'Evil'",
        False,
    ),
    "helper class of our own module": (
        lambda s: pickle.dumps({"G": record("np.load", s)}),
        "'np.load'",
        False,
    ),
    "call as an argument": (
        lambda s: pickle.dumps(
            {"G": record("Generator", s, _init_args=(Call(os.system, touch(s)),))}
        ),
        SYSTEM,
        True,
    ),
    "tensor as an argument": (
        lambda s: pickle.dumps({"G": record("Generator", s, _init_kwargs={"a": torch.ones(1)})}),
        r"G \(Generator\) argument 'a' holds a SavedTensor",
        False,
    ),
    "network as an argument": (
        lambda s: pickle.dumps({"G": record("Generator", s, _init_args=([record("Evil", s)],))}),
        r"G \(Generator\) argument 0 holds a 'Evil'",
        False,
    ),
    "bytes as an argument": (
        lambda s: pickle.dumps({"G": record("Generator", s, _init_kwargs={"a": b"x"})}),
        r"argument 'a' holds a bytes",
        False,
    ),
    "partial": (
        lambda s: pickle.dumps({"G": functools.partial(os.system, touch(s))}),
        "functools.partial",
        False,
    ),
    "attrgetter": (
        lambda _: pickle.dumps({"G": operator.attrgetter("a")}),
        "operator.attrgetter",
        False,
    ),
    "CodeType": (lambda _: b"ctypes\nCodeType\n.", "types.CodeType", False),
    "FunctionType": (lambda _: b"ctypes\nFunctionType\n.", "types.FunctionType", False),
    "numpy.load": (lambda s: called(np.load, str(s), None, True), "numpy.load", False),
    "runstring": (
        lambda s: f"cnumpy.testing._private.utils\nrunstring\n(S{code(s)!r}\n(dtR.".encode(),
        "numpy.testing._private.utils.runstring",
        False,
    ),
    "array of objects": (
        lambda _: pickle.dumps({"G": np.array([{}], dtype=object)}),
        "numpy.dtype 'O8'",
        False,
    ),
    "webbrowser": (lambda s: called(webbrowser.open, f"file://{s}"), "webbrowser.open", False),
    "rmtree": (lambda s: called(shutil.rmtree, str(s.parent)), "shutil.rmtree", False),
    "pickle.loads": (
        lambda s: called(pickle.loads, called(os.system, touch(s))),
        "_pickle.loads",
        True,
    ),
    "persistent id": (with_persistent_id, "elsewhere", False),
    "extension code": (by_extension_code, "extension code 242", False),
    "dotted name": (
        lambda _: (
            b"\x80\x04\x8c\x17torch_utils.persistence"
            b"\x8c\x27_reconstruct_persistent_obj.__globals__\x93."
        ),
        "_reconstruct_persistent_obj.__globals__",
        False,
    ),
    "other encoding": (lambda _: b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.", "_codecs.encode", False),
    "attribute of EasyDict": (
        lambda _: setattr_on_a_name("dnnlib.util", "EasyDict"),
        "SealedDict",
        False,
    ),
    "attribute of the loader": (lambda _: setattr_on_a_name(*REBUILD), "'update'", False),
    "attribute of numpy.dtype": (lambda _: setattr_on_a_name("numpy", "dtype"), "DType", False),
    "attribute of OrderedDict": (
        lambda _: setattr_on_a_name("collections", "OrderedDict"),
        "SealedDict",
        False,
    ),
    "attribute of set": (lambda _: setattr_on_a_name("builtins", "set"), "set", False),
}
