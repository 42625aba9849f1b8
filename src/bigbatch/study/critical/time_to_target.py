"""Time and cost to a target, against batch and workers: what an update costs, times how many the critical-batch curve asks for."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.noise.critical_batch import steps_needed
from bigbatch.simulate.case import Case
from bigbatch.simulate.strategies import STRATEGIES, seconds_of_all
from bigbatch.study.tables import Table, in_figures, in_time

OCTAVES = 6  # batches reach from the critical batch over 2^6 to 2^6 times it


class TradeOff(NamedTuple):
    """S = S_min + E_min/B updates to the target, as `bigbatch critical` fits it."""

    min_steps: float  # S_min
    min_samples: float  # E_min

    @property
    def critical_batch(self) -> float:
        """B_crit, samples."""
        return self.min_samples / self.min_steps


class Way(NamedTuple):
    """One batch on one number of workers, exchanged by the fastest exact strategy."""

    workers: int
    global_batch: int
    strategy: str
    seconds_per_update: float
    updates: float
    seconds: float  # to the target
    worker_hours: float


@dataclass(frozen=True)
class TimeToTarget:
    """Ways to one target.

    Attributes:
        trade_off: Updates against batch.
        price: Of a worker-hour; None where it is not known.
        ways: Every batch on every number of workers.
    """

    trade_off: TradeOff
    price: float | None
    ways: tuple[Way, ...]

    @property
    def fastest(self) -> tuple[Way, ...]:
        """The batch that is fastest on each number of workers."""
        numbers = sorted({way.workers for way in self.ways})
        return tuple(min((way for way in self.ways if way.workers == n), key=lambda way: way.seconds) for n in numbers)

    def sentence(self) -> str:
        """The fastest way and the cheapest, in words."""
        fast, cheap = min(self.ways, key=lambda way: way.seconds), min(self.ways, key=lambda way: way.worker_hours)
        return f"to the target, fastest: {self._in_words(fast)}; cheapest: {self._in_words(cheap)}"

    def table(self) -> Table:
        """The fastest batch on each number of workers."""
        cost = "worker-hours" if self.price is None else "cost"
        columns = ["workers", "best batch", "updates", "an update", "to the target", cost, "by"]
        rows = [
            [
                *(f"{way.workers:,}", f"{way.global_batch:,}", f"{way.updates:,.0f}"),
                *(in_time(way.seconds_per_update), in_time(way.seconds), self._cost(way), way.strategy),
            ]
            for way in self.fastest
        ]
        return Table("To the target", columns, rows, set(columns[:-1]), ("updates", "an update"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"trade_off": self.trade_off._asdict(), "sentence": self.sentence(), "ways": [way._asdict() for way in self.ways]}

    def _in_words(self, way: Way) -> str:
        cost = f"{self._cost(way)} worker-hours" if self.price is None else f"a cost of {self._cost(way)}"
        workers = "1 worker" if way.workers == 1 else f"{way.workers:,} workers"
        return f"{in_time(way.seconds)} and {cost} with {workers} at a batch of {way.global_batch:,}"

    def _cost(self, way: Way) -> str:
        return in_figures(way.worker_hours * (self.price or 1))


def time_to_target(
    case: Case, trade_off: TradeOff, *, workers: Sequence[int], local_batch: int, price: float | None = None, fixed_s: float = 0.0
) -> TimeToTarget:
    """Time and cost to a target on several numbers of workers, each at batches around the critical one.

    A worker's step over m samples takes fixed_s + (step_s - fixed_s) m / local_batch. Only strategies that make the exact update are
    considered: for others the number of updates is not known.

    Args:
        case: Its `step_s` is that of `local_batch` samples.
        trade_off: Updates against batch.
        workers: Numbers of workers.
        local_batch: Samples that `step_s` was timed at.
        price: Of a worker-hour.
        fixed_s: Part of a step that does not shrink with its samples.

    Returns:
        All ways.

    Raises:
        UserError: If an argument is out of range.
    """
    check_positive("S_min", trade_off.min_steps)
    check_positive("E_min", trade_off.min_samples)
    if not 0 <= fixed_s <= case.step_s:
        raise UserError(f"fixed_s = {fixed_s}: must lie from 0 to the step's {case.step_s:g} s; give the seconds of a step of no samples")
    ways = []
    for n in workers:
        for batch in _batches(trade_off.critical_batch, n):
            step_s = fixed_s + (case.step_s - fixed_s) * batch / n / local_batch
            ways.append(_way(dataclasses.replace(case, workers=n, step_s=step_s), trade_off, batch))
    return TimeToTarget(trade_off, price, tuple(ways))


def _way(case: Case, trade_off: TradeOff, batch: int) -> Way:
    times = {name: seconds for name, seconds in seconds_of_all(case).items() if STRATEGIES[name].exact and seconds < math.inf}
    if not times:
        lost = f"lost_every_s = {case.lost_every_s}: with {case.workers:,} workers no exact update is done between two losses"
        raise UserError(f"{lost}; give a longer time or fewer workers")
    strategy = min(times, key=lambda name: times[name])
    updates = steps_needed(batch, min_steps=trade_off.min_steps, critical_batch=trade_off.critical_batch)
    seconds = updates * times[strategy]
    paid = case.workers + (case.servers if "server" in strategy else 0)
    return Way(case.workers, batch, strategy, times[strategy], updates, seconds, paid * seconds / 3600)


def _batches(critical_batch: float, workers: int) -> list[int]:
    """Multiples of the number of workers, by half octaves around the critical batch; one sample a worker at least."""
    wanted = (critical_batch * 2 ** (i / 2) for i in range(-2 * OCTAVES, 2 * OCTAVES + 1))
    return sorted({workers * max(1, math.floor(batch / workers + 0.5)) for batch in wanted})


def trade_off_of(study: Mapping[str, Any]) -> TradeOff:
    """S_min and E_min of a stored study (`critical.json`).

    Raises:
        UserError: If it has none.
    """
    fit = study.get("fit") or {}
    found = [(fit.get(name) or {}).get("value") for name in ("min_steps", "min_samples")]
    ends = [float(value) for value in found if isinstance(value, int | float) and 0 < value < math.inf]
    if len(ends) < 2:
        raise UserError("its study has no fit with both ends; let batches above and below the critical one reach the target")
    return TradeOff(*ends)
