import collections
import copyreg
import io
import os
import pickle

import pytest

from dnnlib.safe_pickle import RestrictedUnpickler, UnsafePickleError

ALLOWED = {("collections", "OrderedDict"): collections.OrderedDict}


def load(data, allowed=ALLOWED, **kwargs):
    return RestrictedUnpickler(io.BytesIO(data), allowed, **kwargs).load()


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_listed_names_are_read(protocol):
    value = {"a": [1, 2.5, None, "ü", b"\xff\x00"][:4], "b": collections.OrderedDict(x=(True, -3))}
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_other_names_are_refused_by_name_and_not_called(protocol, tmp_path):
    target = tmp_path / "made"
    hostile = pickle.dumps([Call(os.mkdir, str(target))], protocol)
    with pytest.raises(UnsafePickleError, match=rf"{os.mkdir.__module__}\.mkdir"):
        load(hostile)
    assert not target.exists()
    pickle.loads(hostile)  # the attack is a real one
    assert target.exists()


def test_names_are_compared_whole():
    nested = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93."
    assert pickle.loads(nested) == collections.OrderedDict.fromkeys
    with pytest.raises(UnsafePickleError, match=r"collections\.OrderedDict\.fromkeys"):
        load(nested)


def test_python_2_names_are_not_translated():
    old = b"c__builtin__\neval\n."
    assert pickle.loads(old) is eval
    with pytest.raises(UnsafePickleError, match=r"__builtin__\.eval"):
        load(old)


def test_persistent_ids_are_refused():
    with pytest.raises(UnsafePickleError, match="storage7"):
        load(b"Pstorage7\n.")


def test_cached_extension_codes_do_not_bypass_the_list():
    copyreg.add_extension(os.__name__, "mkdir", 0xF1)
    try:
        by_code = b"\x80\x02\x82\xf1."
        assert pickle.loads(by_code) is os.mkdir  # and it is in the cache now
        with pytest.raises(UnsafePickleError, match=r"os\.mkdir"):
            load(by_code)
    finally:
        copyreg.remove_extension(os.__name__, "mkdir", 0xF1)


def test_encoding_of_python_2_strings():
    assert load(b"U\x01\xe9.", encoding="latin1") == "é"
    assert load(b"U\x01\xe9.", encoding="bytes") == b"\xe9"
