import json
import platform
import subprocess
import sys

import pytest

# Pages touched for the first time while the same 16 MiB are taken and freed over and over.
CODE = """
import json, resource, torch
from torch_utils.host_memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**22)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([faults() for _ in range(60)]))
"""


def page_faults(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    assert max(page_faults(monkeypatch)[-20:]) < 1000  # the first ones make holes in the heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.slow
def test_variables_of_the_user_win(monkeypatch):
    assert page_faults(monkeypatch, MALLOC_MMAP_THRESHOLD_="100000")[-1] > 1000
