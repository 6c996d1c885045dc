"""Which cases of a test are slow: `make test` leaves them out."""

import pytest


def slow_except(fast, cases):
    """Cases for `pytest.mark.parametrize`, all of them slow except those in `fast`."""
    unknown = [case for case in fast if case not in cases]
    assert not unknown, f"no cases: {unknown}"
    return [case if case in fast else slow(case) for case in cases]


def slow(case):
    """A case that is slow: one value, or a tuple of them."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
