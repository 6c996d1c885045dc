"""Process managers that give a command again when an attempt has ended."""

import os

import psutil


def started_again() -> bool:
    """Whether torchrun or Slurm repeats this command, as an earlier attempt has ended."""
    counts = (os.environ.get(f"{name}_RESTART_COUNT") for name in ("TORCHELASTIC", "SLURM"))
    return any(count not in (None, "", "0") for count in counts)


def job_name() -> str:
    """A name that all attempts of this command share, and no other does; "": it has only one."""
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        agent = psutil.Process(os.getppid())
        return f"torchrun {agent.pid} {agent.create_time()}"
    return f"slurm {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
