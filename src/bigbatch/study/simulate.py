"""What each way to train on many workers would cost: a table, who wins, and what that doesn't say. `bigbatch simulate` prints it."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.simulate.case import Case
from bigbatch.simulate.strategies import STRATEGIES, seconds_of_all

RESULT = "simulate.json"
MILLION = 1e6  # samples, that costs are given for
TIE = 0.005  # strategies nearer than this are named together
DOUBTS = (
    "seconds are per update: where the update differs from that of one worker, more of them may be needed; train to compare",
    "not modelled: switches that hosts share, lost packets and TCP's slow start, loading data, computing slowed by exchanging",
    "a worker that is slow for good sets the pace of all, here as in any of these ways but an asynchronous server",
)


class Row(NamedTuple):
    """One strategy with one number of workers."""

    strategy: str
    exact: bool  # whether an update is that of one worker on the joined batch
    seconds: float  # of one update
    efficiency: float  # against workers that never wait: step over seconds
    samples_per_s: float  # of all workers
    worker_hours: float  # per million samples, hosts of parameter servers counted as a worker each


class Table(NamedTuple):
    """A table for the terminal."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    numbers: set[str]  # columns that are aligned to the right


@dataclass(frozen=True)
class Simulation:
    """Every strategy at several numbers of workers.

    Attributes:
        case: The case with the most workers.
        workers: Numbers of workers, ascending.
        local_batch: Samples of a worker in an update.
        price: Of a worker-hour; None where it is not known.
        rows: For each number of workers, fastest first.
    """

    case: Case
    workers: tuple[int, ...]
    local_batch: int
    price: float | None
    rows: dict[int, tuple[Row, ...]]

    def fastest(self, workers: int, *, exact: bool) -> Row:
        """The fastest strategy; of those that make the exact update, if `exact`."""
        return next(row for row in self.rows[workers] if row.exact or not exact)

    def sentence(self, workers: int | None = None) -> str:
        """Who wins, by how much, and what that needs; with the most workers, if no number is given."""
        n = workers or self.case.workers
        best, winner = self.fastest(n, exact=True), self.fastest(n, exact=False)
        others = [row for row in self.rows[n] if row.exact and row is not best]
        second = others[0]
        ahead = f"{second.seconds / best.seconds:.2f} times as fast as {second.strategy}"
        if second.seconds <= (1 + TIE) * best.seconds:
            ahead = f"as fast as {second.strategy}, to {100 * TIE:g} %"
        text = f"{n:,} workers: {best.strategy} wins among exact updates, {in_time(best.seconds)} at {_percent(best.efficiency)}, {ahead}"
        gain = best.seconds / winner.seconds - 1
        if gain <= TIE:
            return f"{text}; no other way is faster per update"
        return f"{text}; {winner.strategy} takes {in_time(winner.seconds)}: it wins if it needs less than {_percent(gain)} more updates"

    def doubts(self) -> Iterator[str]:
        """What the numbers don't know, each in one line."""
        yield from DOUBTS
        if self.case.spread == 0:
            yield "every worker takes the same time for every step: give --spread, such as 0.05, to see what waiting costs"
        if self.case.workers_per_host > 1:
            yield "what workers of one host say to each other costs nothing here"

    def tables(self) -> list[Table]:
        """Who is fastest over the numbers of workers, and every strategy with the most of them."""
        cost = "worker-hours / 1M samples" if self.price is None else "cost / 1M samples"
        columns = ["strategy", "update", "time", "efficiency", "samples/s", cost, "what happens"]
        rows = [
            [
                *(row.strategy, "exact" if row.exact else "differs"),
                *(*_speed(row), f"{row.samples_per_s:,.0f}", in_figures(row.worker_hours * (self.price or 1))),
                STRATEGIES[row.strategy].words,
            ]
            for row in self.rows[self.case.workers]
        ]
        most = Table(f"{self.case.workers:,} workers", columns, rows, set(columns[2:6]))
        if len(self.workers) == 1:
            return [most]
        columns = ["workers", "fastest exact update", "time", "efficiency", "fastest of all", "its time", "its efficiency"]
        pairs = [(n, self.fastest(n, exact=True), self.fastest(n, exact=False)) for n in self.workers]
        rows = [[f"{n:,}", a.strategy, *_speed(a), b.strategy, *_speed(b)] for n, a, b in pairs]
        return [Table("Over workers", columns, rows, set(columns) - {columns[1], columns[4]}), most]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values: what the plot reads."""
        table = [{"workers": n, **row._asdict()} for n, rows in self.rows.items() for row in rows]
        case = {**dataclasses.asdict(self.case), "link": self.case.link._asdict()}
        words = {"sentence": self.sentence(), "doubts": list(self.doubts())}
        whole = {"case": case, "workers": self.workers, "local_batch": self.local_batch, "price": self.price, **words, "rows": table}
        plain: dict[str, Any] = json.loads(json.dumps(whole, allow_nan=False))
        return plain


def simulate(case: Case, *, workers: Sequence[int] = (), local_batch: int = 32, price: float | None = None) -> Simulation:
    """What every strategy costs.

    Args:
        case: Its number of workers is not looked at where `workers` are given.
        workers: Numbers of workers; for none, powers of two up to the case's, and that.
        local_batch: Samples of a worker in an update.
        price: Of a worker-hour.

    Returns:
        The table and what it says.

    Raises:
        UserError: If an argument is out of range.

    >>> from bigbatch.simulate.link import link_of
    >>> link = link_of(bandwidth_bytes_per_s=6.25e9, latency_s=50e-6)
    >>> found = simulate(Case(workers=2, link=link, model_bytes=1e8, step_s=0.1))
    >>> found.fastest(2, exact=True).strategy, in_time(found.fastest(2, exact=True).seconds)  # the last of four buckets takes 4.1 ms
    ('ring_all_reduce', '104 ms')
    """
    check_positive("local_batch", local_batch)
    if price is not None:
        check_positive("price", price)
    numbers = sorted(set(workers)) or _up_to(case.workers)
    if numbers[0] < 1:
        raise UserError(f"workers = {numbers[0]}: must be 1 or more; give how many there are")
    rows = {n: tuple(_rows(dataclasses.replace(case, workers=n), local_batch)) for n in numbers}
    return Simulation(dataclasses.replace(case, workers=numbers[-1]), tuple(numbers), local_batch, price, rows)


def in_time(seconds: float) -> str:
    """Seconds in three digits and a unit.

    >>> in_time(0.00012), in_time(0.1), in_time(250), in_time(9000)
    ('0.12 ms', '100 ms', '250 s', '2.5 h')
    """
    for unit, size, limit in (("ms", 1e-3, 1.0), ("s", 1.0, 1000.0)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 3600:.3g} h" if seconds < 3.6e6 else f"{seconds / 3600:,.0f} h"


def in_figures(number: float) -> str:
    """Three digits at least, without an exponent above one.

    >>> in_figures(0.0123), in_figures(1234.5)
    ('0.0123', '1,234')
    """
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _rows(case: Case, local_batch: int) -> list[Row]:
    found = []
    for name, seconds in seconds_of_all(case).items():
        paid = case.workers + (case.servers if "server" in name else 0)
        samples_per_s = case.workers * local_batch / seconds
        worker_hours = paid * MILLION / samples_per_s / 3600
        found.append(Row(name, STRATEGIES[name].exact, seconds, case.step_s / seconds, samples_per_s, worker_hours))
    return sorted(found, key=lambda row: row.seconds)


def _speed(row: Row) -> tuple[str, str]:
    return in_time(row.seconds), _percent(row.efficiency)


def _up_to(workers: int) -> list[int]:
    return sorted({1 << i for i in range(1, workers.bit_length())} | {workers})


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
