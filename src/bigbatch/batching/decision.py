"""How a batch may change: what every rule is told, what it answers, and the manners that all of them share."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from bigbatch.core.checks import UserError, check_positive

MOST_FACTOR = 2.0
"""No decision changes the batch by more."""
HYSTERESIS = 1.1
"""A wish nearer than this factor to the present batch changes nothing."""


class UpdateMeasurement(NamedTuple):
    """What a rule is told of one update. NaN: not measured."""

    global_batch: int  # samples of the update
    lr: float = float("nan")  # rate that it was made at
    loss: float = float("nan")  # mean over its samples
    signal: float = float("nan")  # |G|^2, unbiased, of this update alone: may be negative
    noise: float = float("nan")  # tr(S) of one sample's gradient, unbiased, of this update alone: may be negative
    noise_along: float = float("nan")  # variance over samples of g_i . d / |d|, with d the mean gradient of the update before
    seconds: float = float("nan")  # of the update

    @property
    def has_noise(self) -> bool:
        """Whether signal and noise were measured, and are finite."""
        return math.isfinite(self.signal) and math.isfinite(self.noise)


class Proposal(NamedTuple):
    """What a rule wants next, and why, in words that go into the record."""

    global_batch: float  # samples; any number from zero on, infinity for "as large as it may be"
    reason: str


class BatchAndRate(NamedTuple):
    """What a schedule of the batch says: the next batch, and what the peak rate is multiplied by."""

    global_batch: int  # samples of the update
    rate_factor: float


class BatchRule(Protocol):
    """A rule of `bigbatch.batching`: sees every update, and is asked now and then."""

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""

    def propose(self, global_batch: int) -> Proposal | None:
        """What the rule wants now that the batch is `global_batch`; None while it can't tell."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Bounds(NamedTuple):
    """Which batches are possible: multiples of `multiple_of` from `smallest` to `largest`.

    Raises:
        UserError: From `check`, if there is no such batch.
    """

    smallest: int
    largest: int
    multiple_of: int = 1

    def check(self) -> None:
        """Refuse bounds that exclude every choice.

        >>> Bounds(100, 120, 64).check()
        Traceback (most recent call last):
        bigbatch.core.checks.UserError: batches from 100 to 120 in multiples of 64: there is none; widen the bounds
        """
        check_positive("smallest", self.smallest)
        check_positive("multiple_of", self.multiple_of)
        if self.largest // self.multiple_of * self.multiple_of < max(self.smallest, 1):
            raise UserError(
                f"batches from {self.smallest:,} to {self.largest:,} in multiples of {self.multiple_of}: there is none; widen the bounds"
            )

    def nearest(self, global_batch: float) -> int:
        """The possible batch nearest to a wish, the larger of two that are equally near.

        >>> [Bounds(100, 1000, 64).nearest(b) for b in (1, 150, 170, float("inf"))]
        [128, 128, 192, 960]
        >>> Bounds(64, 1000, 64).nearest(160)  # between 128 and 192
        192
        """
        low, high = -(-self.smallest // self.multiple_of), self.largest // self.multiple_of
        return self.multiple_of * math.floor(min(max(global_batch / self.multiple_of, low), high) + 0.5)


def check_growing(global_batch: int, largest: int, multiple_of: int) -> None:
    """Refuse a batch that can't start at `global_batch` and grow to `largest`.

    Raises:
        UserError: If `global_batch` is no multiple of `multiple_of`, or `largest` is smaller.

    >>> check_growing(96, 5120, 64)
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: global_batch = 96: must be a multiple of multiple_of = 64; take 64 or 128
    """
    check_positive("global_batch", global_batch)
    check_positive("multiple_of", multiple_of)
    if global_batch % multiple_of:
        below = global_batch // multiple_of * multiple_of
        choices = f"{below} or {below + multiple_of}" if below else f"{multiple_of}"
        raise UserError(f"global_batch = {global_batch}: must be a multiple of multiple_of = {multiple_of}; take {choices}")
    if largest < global_batch:
        raise UserError(f"largest = {largest}: must be at least global_batch = {global_batch}; give a larger one, or the same to keep it")


def decide(wish: Proposal, now: int, bounds: Bounds) -> tuple[int, str]:
    """The next batch: the wish, at most twice or half the present batch, within the bounds, and only if it is worth the change.

    A present batch that the bounds exclude is left in any case, for the possible batch nearest to what is wished and limited.

    Args:
        wish: Of a rule.
        now: Samples of an update so far.
        bounds: Which batches are possible.

    Returns:
        The next batch and the whole reason: the rule's, and what held it back.

    >>> bounds = Bounds(64, 512, 64)
    >>> decide(Proposal(1000.0, "noise"), 128, bounds)
    (256, 'noise; at most 2 times the batch at once')
    >>> decide(Proposal(135.0, "noise"), 128, bounds)
    (128, 'noise; too near to change')
    >>> decide(Proposal(1000.0, "noise"), 512, bounds)
    (512, 'noise; the largest allowed')
    """
    wanted, held = wish.global_batch, []
    if now / HYSTERESIS < wanted < now * HYSTERESIS and bounds.nearest(now) == now:
        return now, f"{wish.reason}; too near to change"
    limited = min(max(wanted, now / MOST_FACTOR), now * MOST_FACTOR)
    if limited != wanted and bounds.smallest <= limited <= bounds.largest:
        held.append(
            f"at most {MOST_FACTOR:g} times the batch at once" if wanted > now else f"at most 1/{MOST_FACTOR:g} of the batch at once"
        )
    chosen = bounds.nearest(limited)
    if wanted > chosen and chosen == bounds.nearest(bounds.largest):
        held = ["the largest allowed"]
    if wanted < chosen and chosen == bounds.nearest(bounds.smallest):
        held = ["the smallest allowed"]
    if chosen == now and not held:
        held = ["too near to change"]
    return chosen, "; ".join([wish.reason, *held])
