"""Constant: the peak rate throughout. Formula: factor(s) = 1."""

from bigbatch.core.clock import Clock


def constant(clock: Clock) -> float:  # noqa: ARG001
    """Fraction of the peak rate: always 1.

    >>> constant(Clock(samples=7))
    1.0
    """
    return 1.0
