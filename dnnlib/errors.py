"""Errors that the user can mend."""


class UserError(Exception):
    """What the user can mend; the message is one line that says how.

    Front doors end with that line and `exit_status`, and print `traceback` before it where the line
    alone would not say enough. Any other error is a defect and keeps its own traceback.
    """

    exit_status = 1
    traceback = ""


class OptionError(UserError):
    """Options that cannot be, or not together."""

    exit_status = 2


def last_line(error: BaseException) -> str:
    """The message itself: what comes out of workers has a traceback and its class before it."""
    *_, line = str(error).strip().splitlines() or [type(error).__name__]
    return line.removeprefix(f"{type(error).__module__}.{type(error).__qualname__}: ")
