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
