import os
import subprocess
import sys

import pytest

from training.launch.attempts import job_name, started_again


@pytest.mark.parametrize(
    ("env", "again"),
    [
        ({}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": ""}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": "2"}, True),
    ],
)
def test_attempts_of_process_managers(env, again, monkeypatch):
    monkeypatch.setattr(os, "environ", env)
    assert started_again() == again


def test_names_of_jobs(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert job_name() == ""
    monkeypatch.setattr(os, "environ", {"SLURM_JOB_ID": "4711"})
    assert job_name() == "slurm 4711"


def test_attempts_of_torchrun_share_a_name():
    """They have the same parent."""
    code = "from training.launch.attempts import job_name; print(job_name())"
    env = os.environ | {"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_JOB_ID": "1"}
    first, second = (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout and first.stdout.startswith(f"torchrun {os.getpid()} ")
