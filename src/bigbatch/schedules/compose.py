"""Joining schedules. A schedule is any pure function from the clock to a factor of the peak rate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bigbatch.core.clock import Clock

Schedule = Callable[[Clock], float]


@dataclass(frozen=True)
class Product:
    """All factors multiplied; see `product`."""

    schedules: tuple[Schedule, ...]

    def __call__(self, clock: Clock) -> float:
        """Fraction of the peak rate, for the update at the clock."""
        factor = 1.0
        for part in self.schedules:
            factor *= part(clock)
        return factor


@dataclass(frozen=True)
class InTurn:
    """One schedule after another; see `sequence`."""

    parts: tuple[tuple[Schedule, float], ...]  # each with its length in samples
    last: Schedule

    def __call__(self, clock: Clock) -> float:
        """Fraction of the peak rate, for the update at the clock."""
        begin = 0.0
        for part, num_samples in self.parts:
            if clock.samples < begin + num_samples:
                return part(Clock(int(clock.samples - begin), clock.updates))
            begin += num_samples
        return self.last(Clock(int(clock.samples - begin), clock.updates))


def product(*schedules: Schedule) -> Product:
    """All factors multiplied.

    A warm-up ends at 1, so after it the decay stands exactly where it would have stood without; both being continuous, so is the
    product, also when the warm-up outlasts the run. With a decay that is `delayed` by the warm-up, the rate reaches its peak first.
    It can be pickled if its parts can.

    >>> half = product(lambda clock: 0.5, lambda clock: 1.0 - clock.samples / 10)
    >>> half(Clock(samples=5))
    0.25
    """
    return Product(schedules)


def sequence(parts: Sequence[tuple[Schedule, float]], last: Schedule) -> InTurn:
    """One schedule after another, each with a clock that starts at its own beginning.

    Args:
        parts: Pairs of a schedule and its length in samples.
        last: What follows for the rest of the run.

    Returns:
        A schedule. It is continuous where each part ends at the factor that the next one starts from; that is the caller's to see to.
        It can be pickled if its parts can.

    >>> flat_then_down = sequence([(lambda clock: 1.0, 10)], lambda clock: 1 - clock.samples / 10)
    >>> [flat_then_down(Clock(samples=s)) for s in (9, 10, 15)]
    [1.0, 1.0, 0.5]
    """
    return InTurn(tuple(parts), last)


def delayed(schedule: Schedule, num_samples: int) -> Schedule:
    """A schedule that begins after so many samples; before that it is what it is at its beginning.

    >>> down = delayed(lambda clock: 1 - clock.samples / 10, 5)
    >>> [down(Clock(samples=s)) for s in (0, 5, 10, 15)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return partial(_delayed, schedule, num_samples)


def _delayed(schedule: Schedule, num_samples: int, clock: Clock) -> float:
    return schedule(Clock(max(0, clock.samples - num_samples), clock.updates))
