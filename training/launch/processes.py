"""The processes that torchrun has started together, as one command."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from dnnlib.errors import OptionError, UserError, last_line
from training.settings.config import TrainingConfig
from training.settings.ranges import value_problems
from training.settings.setting import settings_of

# torch is imported inside functions, so that `train.py --help` answers at once.


@contextlib.contextmanager
def started_together(given: dict[str, Any]) -> Iterator[None]:
    """Context in which this process can talk to those that torchrun has started, if it has.

    Args:
        given: Options by field name; `gpus` is added where torchrun says it.

    Raises:
        OptionError: The options do not fit what torchrun has started.
        UserError: The other processes cannot be met.
    """
    from torch.distributed import DistError

    from torch_utils import distributed
    from training.launch.plan import machine_settings
    from training.launch.session import show_messages

    if not distributed.under_torchrun():
        show_messages()
        yield
        return
    device = machine_settings(given)["device"]
    declared = settings_of(TrainingConfig)["timeout_minutes"]
    minutes = given.get("timeout_minutes", declared.default)
    for problem in value_problems(declared, minutes):
        raise OptionError(problem)
    with contextlib.ExitStack() as stack:
        try:
            joined = distributed.joined_by_torchrun(device, timedelta(minutes=minutes))
            stack.enter_context(joined)
        except (OSError, DistError) as error:
            raise UserError(f"cannot meet the other processes: {last_line(error)}") from error
        show_messages(distributed.is_rank0())
        count = distributed.get_world_size()
        if given.setdefault("gpus", count) != count:
            raise OptionError(
                f"--gpus={given['gpus']}, but torchrun started {count} processes: leave it out"
            )
        if not distributed.is_rank0():
            stack.enter_context(_silence())
        yield


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Context in which nothing is printed: rank 0 speaks for all."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
