"""Joining schedules. A schedule is any pure function from the clock to a factor of the peak rate."""

from collections.abc import Callable, Sequence
from functools import partial

from bigbatch.core.clock import Clock

Schedule = Callable[[Clock], float]


def product(*schedules: Schedule) -> Schedule:
    """All factors multiplied.

    A warm-up ends at 1, so after it the decay stands exactly where it would have stood without; both being continuous, so is the
    product, also when the warm-up outlasts the run. With a decay that is `delayed` by the warm-up, the rate reaches its peak first.

    >>> half = product(lambda clock: 0.5, lambda clock: 1.0 - clock.samples / 10)
    >>> half(Clock(samples=5))
    0.25
    """

    def schedule(clock: Clock) -> float:
        factor = 1.0
        for part in schedules:
            factor *= part(clock)
        return factor

    return schedule


def sequence(parts: Sequence[tuple[Schedule, float]], last: Schedule) -> Schedule:
    """One schedule after another, each with a clock that starts at its own beginning.

    Args:
        parts: Pairs of a schedule and its length in samples.
        last: What follows for the rest of the run.

    Returns:
        A schedule. It is continuous where each part ends at the factor that the next one starts from; that is the caller's to see to.

    >>> flat_then_down = sequence([(lambda clock: 1.0, 10)], lambda clock: 1 - clock.samples / 10)
    >>> [flat_then_down(Clock(samples=s)) for s in (9, 10, 15)]
    [1.0, 1.0, 0.5]
    """

    def schedule(clock: Clock) -> float:
        begin = 0.0
        for part, num_samples in parts:
            if clock.samples < begin + num_samples:
                return part(Clock(int(clock.samples - begin), clock.updates))
            begin += num_samples
        return last(Clock(int(clock.samples - begin), clock.updates))

    return schedule


def delayed(schedule: Schedule, num_samples: int) -> Schedule:
    """A schedule that begins after so many samples; before that it is what it is at its beginning.

    >>> down = delayed(lambda clock: 1 - clock.samples / 10, 5)
    >>> [down(Clock(samples=s)) for s in (0, 5, 10, 15)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return partial(_delayed, schedule, num_samples)


def _delayed(schedule: Schedule, num_samples: int, clock: Clock) -> float:
    return schedule(Clock(max(0, clock.samples - num_samples), clock.updates))
