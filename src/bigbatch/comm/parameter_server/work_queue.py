"""The work queue of a parameter server: which worker computes which samples, and which gradients an update takes.

It has no sockets, clocks or tensors. The samples of a run form one sequence, split into updates of `global_batch` samples, and each update
into ranges. A range is assigned to a worker as a work item with a unique id, and its gradient is accepted and applied once. The range of a
lost worker is assigned again under a new id. So each sample is in exactly one update, whatever happens to workers. The staleness bound is
guaranteed at every moment (see `can_meet_deadlines` in `async_sgd`): an assignment or gradient that could break it waits. With backup
workers, and in synchronous updates, nothing waits: what is later than the bound is refused, and its range assigned again.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigbatch.comm.parameter_server.async_sgd import can_meet_deadlines
from bigbatch.core.checks import UserError, check_positive


class WorkItem(NamedTuple):
    """A range of samples that is assigned to one worker."""

    id: int
    worker: int
    version: int  # of the weights on which the gradient is computed
    start: int  # index of the first sample in the run
    num_samples: int
    assigned_s: float = 0.0


class Refused(ValueError):
    """A gradient is refused: its work item is done, or was assigned again."""


def even_split(num_samples: int, parts: int) -> list[int]:
    """Split samples into ranges whose sizes differ by at most one.

    >>> even_split(10, 4)
    [2, 3, 2, 3]
    """
    ends = [num_samples * i // parts for i in range(parts + 1)]
    return [b - a for a, b in itertools.pairwise(ends)]


class WorkQueue:
    """Assigns the samples of a run to workers, which may come and go, and collects their gradients into updates.

    Args:
        total_samples: Samples of the whole run.
        global_batch: Samples of one update; the last may have fewer.
        gradients_per_update: M, gradients in one update.
        staleness_bound: T; 0 is synchronous.
        backup_workers: Ranges that are assigned beyond the M that an update waits for; gradients later than T are dropped.
        split: Splits an update: from its samples and M to the sizes of its ranges.
        nonce: From 0 to 2^32 - 1, distinguishes ids from those before a restart of the server; use a random number.
        timeout_s: A work item that takes longer is assigned again.

    Attributes:
        version: Updates made.
        samples: Samples applied.
        histogram: Gradients applied, by staleness.
        refused: Gradients refused, by reason.

    Raises:
        UserError: If a setting is invalid.

    >>> queue = WorkQueue(total_samples=6, global_batch=2, staleness_bound=1)
    >>> a, b = queue.assign(0), queue.assign(1)
    >>> queue.assign(2) is None  # a third gradient of version 0 would be too stale
    True
    >>> queue.accept(b.id), [(work.start, tau) for work, tau in queue.ready()]
    (None, [(2, 0)])
    >>> queue.mark_applied(), queue.accept(a.id), [(work.start, tau) for work, tau in queue.ready()]
    (None, None, [(0, 1)])
    """

    def __init__(
        self,
        *,
        total_samples: int,
        global_batch: int,
        gradients_per_update: int = 1,
        staleness_bound: int = 0,
        backup_workers: int = 0,
        split: Callable[[int, int], list[int]] = even_split,
        nonce: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        for name, value in (("total_samples", total_samples), ("global_batch", global_batch), ("timeout_s", timeout_s)):
            check_positive(name, value)
        check_positive("gradients_per_update", gradients_per_update)
        if gradients_per_update > global_batch:
            raise UserError(
                f"gradients_per_update = {gradients_per_update}: more than the {global_batch} samples of an update; lower it, or raise "
                "the batch"
            )
        if staleness_bound < 0 or backup_workers < 0:
            raise UserError(f"staleness_bound = {staleness_bound}, backup_workers = {backup_workers}: neither may be below zero; raise it")
        self.total_samples, self.global_batch, self.gradients_per_update = total_samples, global_batch, gradients_per_update
        self.staleness_bound, self.backup_workers, self.timeout_s = staleness_bound, backup_workers, timeout_s
        self._drops_late = staleness_bound == 0 or backup_workers > 0
        self._split, self.nonce, self._count = split, nonce, 0
        self.version = self.samples = 0
        self.histogram: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        self._cursor = 0  # samples split into ranges so far
        self._waiting: list[tuple[int, int]] = []  # ranges to assign, ascending
        self._computing: dict[int, WorkItem] = {}
        self._arrived: dict[int, WorkItem] = {}  # held back, or the staleness bound of others could break
        self._collected: dict[int, WorkItem] = {}  # for the next update
        self._applied: list[list[int]] = []  # [start, stop) of applied samples, adjacent ranges merged

    @property
    def done(self) -> bool:
        """Whether every sample is applied."""
        return self.samples == self.total_samples

    def assign(self, worker: int, now_s: float = 0.0) -> WorkItem | None:
        """Assign a work item to a worker, after releasing its unfinished one; None if there is none, or the worker must wait."""
        self.release(worker)
        if not (self._waiting or self._cursor < self.total_samples):
            return None
        # no worker is its own backup: its gradient would be late
        surplus = 0 if any(work.worker == worker for work in self._collected.values()) else self.backup_workers
        if len(self.outstanding) >= self.gradients_per_update * (self.staleness_bound + 1) + surplus:
            return None
        if not self._waiting:
            self._split_next_update()
        self._count += 1
        work = WorkItem(self.nonce << 32 | self._count, worker, self.version, *self._waiting.pop(0), now_s)
        self._computing[work.id] = work
        return work

    def accept(self, id: int) -> None:
        """Accept the gradient of a work item.

        Raises:
            Refused: If the item is unknown, done, or was assigned again.
        """
        work = self._computing.pop(id, None)
        if work is None:
            why = "late" if id >> 32 == self.nonce and 0 < id & 0xFFFFFFFF <= self._count else "unknown"
            self.refused[why] += 1
            raise Refused(f"work item {id} is {why}: it is done, was assigned again, or is from before a restart of the server")
        self._arrived[id] = work
        self._collect()

    def ready(self) -> list[tuple[WorkItem, int]]:
        """The work items of the next update, ordered by first sample, with their staleness; empty until all gradients have arrived."""
        if not self._full():
            return []
        work_items = sorted(self._collected.values(), key=lambda work: work.start)
        return [(work, self.version - work.version) for work in work_items]

    def mark_applied(self) -> None:
        """Record that the update that was ready is applied."""
        ready = self.ready()
        assert ready, "no update was ready"
        assert all(0 <= tau <= self.staleness_bound for _, tau in ready), "the staleness bound was broken"
        for work, tau in ready:
            self.histogram[tau] += 1
            self.samples += work.num_samples
            self._mark_range(work.start, work.start + work.num_samples)
        self._collected.clear()
        self.version += 1
        if self._drops_late:
            for work in [*self._computing.values(), *self._arrived.values()]:
                if work.version + self.staleness_bound < self.version:
                    self._release(work.id)
        self._collect()

    def release(self, worker: int) -> list[WorkItem]:
        """Release the unfinished work items of a worker, which is lost or restarts. Returns these items."""
        lost = [work for work in self._computing.values() if work.worker == worker]
        for work in lost:
            self._release(work.id)
        if lost:
            self._collect()
        return lost

    def expire(self, now_s: float) -> list[WorkItem]:
        """Release the work items that have timed out. Returns these items."""
        late = [work for work in self._computing.values() if now_s - work.assigned_s > self.timeout_s]
        for work in late:
            self._release(work.id)
        if late:
            self._collect()
        return late

    def is_pending(self, id: int) -> bool:
        """Whether the gradient of a work item is accepted and not applied yet."""
        return id in self._arrived or id in self._collected

    @property
    def outstanding(self) -> list[int]:
        """Ids of all work items that are assigned and not applied."""
        return [*self._computing, *self._arrived, *self._collected]

    def state_dict(self) -> dict[str, Any]:
        """State as plain values; ranges that are assigned but not applied count as not assigned."""
        unapplied = [(w.start, w.num_samples) for held in (self._computing, self._arrived, self._collected) for w in held.values()]
        return {
            "version": self.version,
            "samples": self.samples,
            "cursor": self._cursor,
            "waiting": [list(span) for span in sorted([*self._waiting, *unapplied])],
            "applied": [list(interval) for interval in self._applied],
            "histogram": {str(tau): count for tau, count in sorted(self.histogram.items())},
            "refused": dict(self.refused),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of an earlier queue of the same run. Its ranges are used again only if they lie between applied ones."""
        self.version, self.samples, self._cursor = state["version"], state["samples"], state["cursor"]
        self._waiting = [(start, count) for start, count in state["waiting"]]
        if state["applied"] in ([], [[0, self.samples]]):  # no gaps: split the rest as without a restart
            self._cursor, self._waiting = self.samples, []
        self._applied = [list(interval) for interval in state["applied"]]
        self.histogram = Counter({int(tau): count for tau, count in state["histogram"].items()})
        self.refused = Counter(state["refused"])
        self._computing, self._arrived, self._collected = {}, {}, {}

    @property
    def applied_ranges(self) -> list[list[int]]:
        """The ranges [start, stop) of applied samples; at the end, a single range of all samples."""
        return [list(interval) for interval in self._applied]

    def _split_next_update(self) -> None:
        num_samples = min(self.global_batch, self.total_samples - self._cursor)
        for size in self._split(num_samples, self.gradients_per_update):
            if size:
                self._waiting.append((self._cursor, size))
                self._cursor += size

    def _full(self) -> bool:
        held = sum(work.num_samples for work in self._collected.values())
        return bool(held) and (len(self._collected) == self.gradients_per_update or self.samples + held == self.total_samples)

    def _collect(self) -> None:
        """Move gradients into the next update, in order of arrival, unless the staleness bound of another gradient could then break."""
        for id, work in list(self._arrived.items()):
            if self._full():
                return
            if self._drops_late or self._may_collect(work):
                self._collected[id] = self._arrived.pop(id)

    def _may_collect(self, work: WorkItem) -> bool:
        others = [w.version + self.staleness_bound for held in (self._computing, self._arrived) for w in held.values() if w.id != work.id]
        settings = {"version": self.version, "collected": len(self._collected) + 1, "gradients_per_update": self.gradients_per_update}
        return can_meet_deadlines(others, **settings)

    def _release(self, id: int) -> None:
        work = self._computing.pop(id, None) or self._arrived.pop(id)
        bisect.insort(self._waiting, (work.start, work.num_samples))

    def _mark_range(self, start: int, stop: int) -> None:
        at = bisect.bisect(self._applied, [start])
        before, after = self._applied[at - 1] if at else None, self._applied[at] if at < len(self._applied) else None
        assert before is None or before[1] <= start, "a sample was applied twice"
        assert after is None or stop <= after[0], "a sample was applied twice"
        self._applied.insert(at, [start, stop])
        for i in (at, at - 1):  # merge with the next range, then with the previous one
            if 0 <= i < len(self._applied) - 1 and self._applied[i][1] == self._applied[i + 1][0]:
                self._applied[i][1] = self._applied.pop(i + 1)[1]
