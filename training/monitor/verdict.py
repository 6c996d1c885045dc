"""What those who watch a run say of a tick; the loop acts upon it."""

from enum import Enum
from typing import NamedTuple

from dnnlib.errors import UserError


class Action(Enum):
    """What is to be done."""

    GO_ON = "go on"
    WARN = "warn"
    ROLL_BACK = "roll back"
    STOP = "stop"


class Verdict(NamedTuple):
    """An action, the texts to warn with, and the error to end the run by, where it is to stop."""

    action: Action = Action.GO_ON
    warnings: tuple[str, ...] = ()
    error: UserError | None = None
