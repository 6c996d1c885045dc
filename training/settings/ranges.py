"""Whether the value of one setting is in the range that its declaration says."""

import math
from collections.abc import Iterator
from typing import Any

from training.settings.setting import Setting, flag


def value_problems(declared: Setting, value: Any) -> Iterator[str]:
    """Messages about a value that is out of range; None always is in it."""
    option, choices = flag(declared.name), declared.choices
    if isinstance(value, tuple):
        for word in value:
            if choices and word not in choices:
                yield f"{option} knows {', '.join(choices)}, not {word!r}"
    elif isinstance(value, str):
        if choices and value not in choices:
            allowed = "a number or" if float in declared.kinds else "one of"
            yield f"{option} must be {allowed} {', '.join(choices)}, not {value}"
    elif value is not None:
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{option} must be a finite number, not {value}"
        elif not _in_range(declared, value):
            yield f"{option} must be {_range(declared)}, not {value}"


def _in_range(declared: Setting, value: float) -> bool:
    return (
        (declared.least is None or value >= declared.least)
        and (declared.above is None or value > declared.above)
        and (declared.most is None or value <= declared.most)
    )


def _range(declared: Setting) -> str:
    """The range in words."""
    least, above, most = declared.least, declared.above, declared.most
    if least is not None and most is not None:
        return f"from {least} to {_shown(most)}"
    if above == 0 and most is None:
        return "positive"
    bounds = {"at least": least, "above": above, "at most": most}
    return " and ".join(f"{word} {_shown(n)}" for word, n in bounds.items() if n is not None)


def _shown(bound: float) -> str:
    """A bound as text: the largest number of 32 bits as one can read it."""
    return "2^32 - 1" if bound == 2**32 - 1 else str(bound)
