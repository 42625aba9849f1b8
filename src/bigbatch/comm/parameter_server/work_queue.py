"""Who computes what, and what may be applied when: a parameter server's decisions, without sockets, clocks or tensors.

The samples of a run are one stream, cut into updates of `global_batch` and each of these into pieces. A piece is handed out as work with
an id that is never used again, comes back by its id, once, and is applied, once; a piece whose worker is lost is handed out again under
another id, so that every sample is in exactly one update whatever happens to workers. The staleness bound is kept at every moment (see
`can_meet_deadlines` in `async_sgd`): what could break it waits.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigbatch.comm.parameter_server.async_sgd import can_meet_deadlines
from bigbatch.core.checks import UserError, check_positive


class WorkItem(NamedTuple):
    """A piece of the run in one worker's hands."""

    id: int
    worker: int
    version: int  # of the weights that go with it
    start: int  # its first sample, by number in the run
    num_samples: int
    assigned_s: float = 0.0


class Refused(ValueError):
    """A gradient that is not wanted: its work is done, or was given to another."""


def even_split(num_samples: int, pieces: int) -> list[int]:
    """Sizes that differ by at most one.

    >>> even_split(10, 4)
    [2, 3, 2, 3]
    """
    ends = [num_samples * i // pieces for i in range(pieces + 1)]
    return [b - a for a, b in itertools.pairwise(ends)]


class WorkQueue:
    """The state of a run that is computed by workers that come and go.

    Args:
        total_samples: Samples of the whole run.
        global_batch: Samples of one update; the last may have fewer.
        gradients_per_update: M, gradients in one update.
        staleness_bound: T; 0 is synchronous.
        backup_workers: With T = 0: pieces that are computed beyond the M that an update waits for; what comes late is dropped.
        cut: From samples of an update and M to the sizes of its pieces.
        nonce: Makes ids of this ledger differ from those of its earlier lives, 0 to 2^32 - 1; draw it at random after a crash.
        timeout_s: Work that is out for longer is given to another.

    Attributes:
        version: Updates made.
        samples: Samples applied.
        histogram: Gradients applied, by staleness.
        refused: Gradients refused, by reason.

    Raises:
        UserError: If a setting is impossible.

    >>> queue = WorkQueue(total_samples=6, global_batch=2, staleness_bound=1)
    >>> a, b = queue.assign(0), queue.assign(1)
    >>> queue.assign(2) is None  # a third of version 0 could not be applied in time
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
        if staleness_bound < 0 or backup_workers < 0 or (staleness_bound and backup_workers):
            raise UserError(
                f"staleness_bound = {staleness_bound}, backup_workers = {backup_workers}: neither may be below zero, and backup workers "
                "belong to synchronous updates (staleness_bound = 0); set one of them to 0"
            )
        self.total_samples, self.global_batch, self.gradients_per_update = total_samples, global_batch, gradients_per_update
        self.staleness_bound, self.backup_workers, self.timeout_s = staleness_bound, backup_workers, timeout_s
        self._split, self.nonce, self._count = split, nonce, 0
        self.version = self.samples = 0
        self.histogram: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        self._cursor = 0  # samples cut into pieces so far
        self._waiting: list[tuple[int, int]] = []  # pieces to hand out, ascending
        self._computing: dict[int, WorkItem] = {}
        self._arrived: dict[int, WorkItem] = {}  # held back for the sake of others' bounds
        self._collected: dict[int, WorkItem] = {}  # for the next update
        self._applied: list[list[int]] = []  # [start, stop) of samples applied, joined where they touch

    @property
    def done(self) -> bool:
        """Whether every sample is applied."""
        return self.samples == self.total_samples

    def assign(self, worker: int, now_s: float = 0.0) -> WorkItem | None:
        """Work for a worker, or None while there is none or it would have to wait. What it had before and never gave is taken back."""
        self.release(worker)
        if not (self._waiting or self._cursor < self.total_samples):
            return None
        surplus = 0 if any(work.worker == worker for work in self._collected.values()) else self.backup_workers
        if (
            len(self.outstanding) >= self.gradients_per_update * (self.staleness_bound + 1) + surplus
        ):  # no worker is its own backup: it would come late itself
            return None
        if not self._waiting:
            self._split_next_update()
        self._count += 1
        work = WorkItem(self.nonce << 32 | self._count, worker, self.version, *self._waiting.pop(0), now_s)
        self._computing[work.id] = work
        return work

    def accept(self, id: int) -> None:
        """A gradient has come.

        Raises:
            Refused: If its work is unknown, done, or was given to another.
        """
        work = self._computing.pop(id, None)
        if work is None:
            why = "late" if id >> 32 == self.nonce and 0 < id & 0xFFFFFFFF <= self._count else "unknown"
            self.refused[why] += 1
            raise Refused(f"work {id}: is {why}: it was done, given to another, or handed out before the server went down")
        self._arrived[id] = work
        self._collect()

    def ready(self) -> list[tuple[WorkItem, int]]:
        """The gradients of the next update, by their place in the run, each with its staleness; empty until they are all here."""
        if not self._full():
            return []
        work_items = sorted(self._collected.values(), key=lambda work: work.start)
        return [(work, self.version - work.version) for work in work_items]

    def mark_applied(self) -> None:
        """The update that was ready is made."""
        ready = self.ready()
        assert ready, "no update was ready"
        assert all(0 <= tau <= self.staleness_bound for _, tau in ready), "a staleness bound was broken"
        for work, tau in ready:
            self.histogram[tau] += 1
            self.samples += work.num_samples
            self._note_applied(work.start, work.start + work.num_samples)
        self._collected.clear()
        self.version += 1
        if self.staleness_bound == 0:
            for id in [*self._computing, *self._arrived]:
                self._take_back(id)
        self._collect()

    def release(self, worker: int) -> list[WorkItem]:
        """A worker is gone, or starts anew: what it has not given is taken back. Returns that."""
        lost = [work for work in self._computing.values() if work.worker == worker]
        for work in lost:
            self._take_back(work.id)
        if lost:
            self._collect()
        return lost

    def expire(self, now_s: float) -> list[WorkItem]:
        """Take back what is out for too long. Returns that."""
        late = [work for work in self._computing.values() if now_s - work.assigned_s > self.timeout_s]
        for work in late:
            self._take_back(work.id)
        if late:
            self._collect()
        return late

    def is_pending(self, id: int) -> bool:
        """Whether the gradient of this work has come and is still to be applied."""
        return id in self._arrived or id in self._collected

    @property
    def outstanding(self) -> list[int]:
        """Ids of all work that is handed out and not applied."""
        return [*self._computing, *self._arrived, *self._collected]

    def state_dict(self) -> dict[str, Any]:
        """Plain values: what is applied, and what is not. Work that is out counts as not handed out."""
        out = [(w.start, w.num_samples) for held in (self._computing, self._arrived, self._collected) for w in held.values()]
        return {
            "version": self.version,
            "samples": self.samples,
            "cursor": self._cursor,
            "waiting": [list(piece) for piece in sorted([*self._waiting, *out])],
            "applied": [list(interval) for interval in self._applied],
            "histogram": {str(tau): count for tau, count in sorted(self.histogram.items())},
            "refused": dict(self.refused),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where another ledger of the same run stood. Its pieces are kept only where they lie between applied ones."""
        self.version, self.samples, self._cursor = state["version"], state["samples"], state["cursor"]
        self._waiting = [(start, count) for start, count in state["waiting"]]
        if state["applied"] in ([], [[0, self.samples]]):  # nothing between: what follows is cut as it would have been without a break
            self._cursor, self._waiting = self.samples, []
        self._applied = [list(interval) for interval in state["applied"]]
        self.histogram = Counter({int(tau): count for tau, count in state["histogram"].items()})
        self.refused = Counter(state["refused"])
        self._computing, self._arrived, self._collected = {}, {}, {}

    @property
    def applied_ranges(self) -> list[list[int]]:
        """[start, stop) of the samples that are applied; in the end, one from zero to all."""
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
        """Move what has arrived into the next update, in its order, as far as all bounds can then still be kept."""
        for id, work in list(self._arrived.items()):
            if self._full():
                return
            if self.staleness_bound == 0 or self._may_collect(work):
                self._collected[id] = self._arrived.pop(id)

    def _may_collect(self, work: WorkItem) -> bool:
        others = [w.version + self.staleness_bound for held in (self._computing, self._arrived) for w in held.values() if w.id != work.id]
        settings = {"version": self.version, "collected": len(self._collected) + 1, "gradients_per_update": self.gradients_per_update}
        return can_meet_deadlines(others, **settings)

    def _take_back(self, id: int) -> None:
        work = self._computing.pop(id, None) or self._arrived.pop(id)
        bisect.insort(self._waiting, (work.start, work.num_samples))

    def _note_applied(self, start: int, stop: int) -> None:
        at = bisect.bisect(self._applied, [start])
        before, after = self._applied[at - 1] if at else None, self._applied[at] if at < len(self._applied) else None
        assert before is None or before[1] <= start, "a sample was applied twice"
        assert after is None or stop <= after[0], "a sample was applied twice"
        self._applied.insert(at, [start, stop])
        for i in (at, at - 1):  # join with the one after, then with the one before
            if 0 <= i < len(self._applied) - 1 and self._applied[i][1] == self._applied[i + 1][0]:
                self._applied[i][1] = self._applied.pop(i + 1)[1]
