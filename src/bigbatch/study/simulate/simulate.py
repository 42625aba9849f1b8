"""What each way to train on many workers would cost: a table, who wins, and what that doesn't say. `bigbatch simulate` prints it."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.notebook import Content, Displayed
from bigbatch.simulate.all_reduce import FASTEST
from bigbatch.simulate.case import Case
from bigbatch.simulate.strategies import STRATEGIES, cost_of_all
from bigbatch.study.result_files import SIMULATION
from bigbatch.study.tables import Table, in_bytes, in_figures, in_time

RESULT = SIMULATION
MILLION = 1e6  # samples, that costs are given for
MANY = 10.0  # times as many updates: no more given in percent
TIE = 0.005  # strategies nearer than this are named together
DOUBTS = (
    "seconds are per update: where the update differs from that of one worker, more of them may be needed; train to compare",
    "not modelled: switches that hosts share, lost packets and TCP's slow start, loading data, computing slowed by exchanging",
    "a worker that is slow for good sets the pace of all, here as in any of these ways but an asynchronous server",
)
FAR_S = 0.01  # of latency: a link between sites
BETWEEN_SITES = (
    "between sites, exchanges took 1.08 to 1.92 times what such a model says (one report): measure with `bigbatch doctor --workers N`",
    "the best all-reduce and gathering are taken for each size; torch's gloo has rings: --all-reduce gloo_ring shows what those cost",
)
OF_LOSSES = (
    "workers are lost one by one and at random; a site, a provider or an hour that takes many at once costs more",
    "a lost worker is replaced after --recovery, by one as fast; gossip, NoLoCo and an asynchronous server notice it at once",
)


class Row(NamedTuple):
    """One strategy with one number of workers."""

    strategy: str
    exact: bool  # whether an update is that of one worker on the joined batch
    seconds: float  # of one update
    efficiency: float  # against workers that never wait: step over seconds
    samples_per_s: float  # of all workers
    worker_hours: float  # per million samples, hosts of parameter servers counted as a worker each
    sent_bytes: float  # that a host sends to others in an update, mean over hosts and updates
    goodput: float  # share of the time that counts: what losses of workers leave


@dataclass(frozen=True, repr=False)
class Simulation(Displayed):
    """Every strategy at several numbers of workers.

    Attributes:
        case: The case with the most workers.
        workers: Numbers of workers, ascending.
        local_batch: Samples of a worker in an update.
        price: Of a worker-hour; None where it is not known.
        rows: For each number of workers, fastest first. A way whose update is never done between two losses is not among them.
    """

    case: Case
    workers: tuple[int, ...]
    local_batch: int
    price: float | None
    rows: dict[int, tuple[Row, ...]]

    def fastest(self, workers: int, *, exact: bool) -> Row | None:
        """The fastest strategy; of those that make the exact update, if `exact`. None if losses leave none."""
        return next((row for row in self.rows[workers] if row.exact or not exact), None)

    def sentence(self, workers: int | None = None) -> str:
        """Who wins, by how much, and what that needs; with the most workers, if no number is given."""
        n = workers or self.case.workers
        winner = self.rows[n][0]
        best = self.fastest(n, exact=True)
        if best is None:
            lost = f"{n:,} workers: no exact update is done before a worker is lost, one every {self._loss_in_time(n)}"
            return f"{lost}; of the others {winner.strategy} is fastest, {in_time(winner.seconds)} at {_percent(winner.efficiency)}"
        text = f"{n:,} workers: {best.strategy} wins among exact updates, {in_time(best.seconds)} at {_percent(best.efficiency)}"
        text += self._ahead(n, best)
        gain = best.seconds / winner.seconds - 1
        if gain <= TIE:
            text = f"{text}; no other way is faster per update"
        else:
            more = f"{_percent(gain)} more" if gain < MANY - 1 else f"{in_figures(1 + gain)} times as many"
            text = f"{text}; {winner.strategy} takes {in_time(winner.seconds)}: it wins if it needs less than {more} updates"
        if self.case.lost_every_s is None:
            return text
        counts = f"{_percent(best.goodput)} of the time counts in {best.strategy}"
        counts += f", {_percent(winner.goodput)} in {winner.strategy}" if winner is not best else ""
        return f"{text}; with a worker lost every {self._loss_in_time(n)}, {counts}"

    def _ahead(self, workers: int, best: Row) -> str:
        second = next((row for row in self.rows[workers] if row.exact and row is not best), None)
        if second is None:
            return ", the only one that is ever done"
        if second.seconds <= (1 + TIE) * best.seconds:
            return f", as fast as {second.strategy}, to {100 * TIE:g} %"
        return f", {in_figures(second.seconds / best.seconds, 2)} times as fast as {second.strategy}"

    def _loss_in_time(self, workers: int) -> str:
        return in_time((self.case.lost_every_s or math.inf) / workers)

    def never(self, workers: int) -> list[str]:
        """Ways whose update is never done between two losses."""
        case = dataclasses.replace(self.case, workers=workers)
        return [name for name, cost in cost_of_all(case).items() if math.isinf(cost.seconds)]

    def doubts(self) -> Iterator[str]:
        """What the numbers don't know, each in one line."""
        yield from DOUBTS
        if self.case.spread == 0:
            yield "every worker takes the same time for every step: give --spread, such as 0.05, to see what waiting costs"
        if self.case.workers_per_host > 1 and self.case.host_link is None:
            yield "what workers of one host say to each other costs nothing here"
        if self.case.link.alpha_s >= FAR_S:
            yield BETWEEN_SITES[0]
            if self.case.all_reduce == FASTEST:
                yield BETWEEN_SITES[1]
            if self.case.lost_every_s is None:
                yield "no worker is ever lost: give --lost-every, such as 24h, to see what losses cost"
        if self.case.lost_every_s is not None:
            yield from OF_LOSSES
            if gone := self.never(self.case.workers):
                yield f"not in the table, never done between two losses: {', '.join(gone)}"

    def tables(self) -> list[Table]:
        """Who is fastest over the numbers of workers, and every strategy with the most of them."""
        most = self._table_of_most()
        if len(self.workers) == 1:
            return [most]
        columns = ["workers", "fastest exact update", "time", "efficiency", "fastest of all", "its time", "its efficiency"]
        rows = []
        for n in self.workers:
            exact, winner = self.fastest(n, exact=True), self.rows[n][0]
            rows.append([f"{n:,}", *((exact.strategy, *_speed(exact)) if exact else ("none", "", "")), winner.strategy, *_speed(winner)])
        spare = (columns[3], columns[6])
        return [Table("Over workers", columns, rows, set(columns) - {columns[1], columns[4]}, spare), most]

    def _table_of_most(self) -> Table:
        cost = "worker-hours / 1M samples" if self.price is None else "cost / 1M samples"
        lossy = self.case.lost_every_s is not None
        columns = ["strategy", "update", "time", "efficiency", "sent", *(["goodput"] if lossy else []), "samples/s", cost, "what happens"]
        rows = [
            [
                *(row.strategy, "exact" if row.exact else "differs", *_speed(row), in_bytes(row.sent_bytes)),
                *([_percent(row.goodput)] if lossy else []),
                *(in_figures(row.samples_per_s), in_figures(row.worker_hours * (self.price or 1)), STRATEGIES[row.strategy].words),
            ]
            for row in self.rows[self.case.workers]
        ]
        return Table(f"{self.case.workers:,} workers", columns, rows, set(columns[2:-1]), tuple(columns[4:]))

    def shown(self) -> Content:
        """What a notebook shows: who wins, and a row a strategy and number of workers."""
        rows = [[workers, *row] for workers, found in self.rows.items() for row in found]
        return Content([self.sentence(), *self.doubts()], ["workers", *Row._fields], rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values: what the plot reads."""
        table = [{"workers": n, **row._asdict()} for n, rows in self.rows.items() for row in rows]
        inside = self.case.host_link and self.case.host_link._asdict()
        case = {**dataclasses.asdict(self.case), "link": self.case.link._asdict(), "host_link": inside}
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
    for n, found in rows.items():
        if not found:
            raise UserError(
                f"lost_every_s = {case.lost_every_s}: with {n:,} workers no update is done between two losses; give a longer time"
            )
    return Simulation(dataclasses.replace(case, workers=numbers[-1]), tuple(numbers), local_batch, price, rows)


def _rows(case: Case, local_batch: int) -> list[Row]:
    found = []
    for name, cost in cost_of_all(case).items():
        if math.isinf(cost.seconds):
            continue
        paid = case.workers + (case.servers if "server" in name else 0)
        samples_per_s = case.workers * local_batch / cost.seconds
        spent = {"worker_hours": paid * MILLION / samples_per_s / 3600, "sent_bytes": cost.sent_bytes, "goodput": cost.goodput}
        found.append(Row(name, STRATEGIES[name].exact, cost.seconds, case.step_s / cost.seconds, samples_per_s, **spent))
    return sorted(found, key=lambda row: row.seconds)


def _speed(row: Row) -> tuple[str, str]:
    return in_time(row.seconds), _percent(row.efficiency)


def _up_to(workers: int) -> list[int]:
    return sorted({1 << i for i in range(1, workers.bit_length())} | {workers})


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
