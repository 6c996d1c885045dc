import threading

import numpy as np
import pytest

from metrics.cache import cache_file, read_cached, write_cached
from metrics.features import Collected
from metrics.moments import moments_of

BOTH = {"moments", "rows"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    return tmp_path


def statistics(seed=0, count=40):
    rows = np.random.RandomState(seed).randn(count, 3).astype(np.float32)
    return Collected(count, moments_of(rows), rows)


def same(a, b):
    arrays = [(c.rows, c.moments.mean, c.moments.covariance) for c in (a, b)]
    return a.count == b.count and all(map(np.array_equal, *arrays))


def test_round_trip():
    path = cache_file({"data": "x"})
    assert read_cached(path, BOTH) is None
    write_cached(path, statistics())
    assert same(read_cached(path, BOTH), statistics())
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_the_key_is_all_that_statistics_depend_on(folder):
    what = {"data": "x", "detector": "y", "count": 3}
    files = {cache_file(what | change) for change in ({}, {"count": 4}, {"data": "z"}, {"new": 1})}
    assert len(files) == 4 and all(folder in file.parents for file in files)
    assert cache_file(dict(reversed(what.items()))) == cache_file(what)


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_a_corrupt_file_is_as_good_as_none(damage, caplog):
    path = cache_file({"data": "x"})
    write_cached(path, statistics())
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    content = {"empty": b"", "cut": data[:-30], "flipped": data, "other": b"hello"}[damage]
    path.write_bytes(content)
    assert read_cached(path, BOTH) is None
    assert "are damaged" in caplog.text and "making them again" in caplog.text


def test_wrong_shapes_are_damage():
    path = cache_file({"data": "x"})
    good = statistics()
    write_cached(path, Collected(7, good.moments, good.rows))
    assert read_cached(path, BOTH) is None
    write_cached(path, Collected(40, good.moments))
    assert read_cached(path, BOTH) is None
    assert read_cached(path, {"moments"}) is not None


def test_what_is_not_finite_is_damage():
    path, good = cache_file({"data": "x"}), statistics()
    rows = good.rows.copy()
    rows[3, 0] = np.nan
    write_cached(path, Collected(good.count, good.moments, rows))
    assert read_cached(path, {"rows"}) is None and read_cached(path, {"moments"}) is not None


def test_concurrent_writers_and_readers():
    path, stop, seen = cache_file({"data": "x"}), threading.Event(), []

    def read():
        while not stop.is_set():
            found = read_cached(path, BOTH)
            seen.append(found is None or same(found, statistics()))

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write_cached, args=(path, statistics())) for _ in range(8)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert seen and all(seen) and same(read_cached(path, BOTH), statistics())


def test_a_cache_that_cannot_be_written_is_no_error(folder, monkeypatch, caplog):
    (folder / "file").write_bytes(b"")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(folder / "file"))
    write_cached(cache_file({"data": "x"}), statistics())
    assert "Cannot keep the statistics" in caplog.text
    assert read_cached(cache_file({"data": "x"}), BOTH) is None
