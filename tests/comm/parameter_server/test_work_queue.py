import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.comm.parameter_server.work_queue import Refused, WorkQueue
from bigbatch.core.checks import UserError


def test_synchronous_updates_are_those_of_one_worker():
    queue = WorkQueue(total_samples=10, global_batch=4, gradients_per_update=2)
    updates = []
    while not queue.done:
        work_items = [work for work in (queue.assign(worker) for worker in range(2)) if work]
        for work in reversed(work_items):
            queue.accept(work.id)
        updates.append([(work.start, work.num_samples, tau) for work, tau in queue.ready()])
        queue.mark_applied()
    assert updates == [[(0, 2, 0), (2, 2, 0)], [(4, 2, 0), (6, 2, 0)], [(8, 1, 0), (9, 1, 0)]]
    assert queue.applied_ranges == [[0, 10]]


def test_what_would_break_anothers_bound_waits():
    queue = WorkQueue(total_samples=8, global_batch=1, staleness_bound=2)
    slow = queue.assign(0)
    for _ in range(2):
        queue.accept(queue.assign(1).id)
        queue.mark_applied()
    fast = queue.assign(1)
    queue.accept(fast.id)
    assert queue.ready() == []  # at version 2, the slow one must come first
    queue.accept(slow.id)
    assert queue.ready() == [(slow, 2)]
    queue.mark_applied()
    assert queue.ready() == [(fast, 1)]


def test_with_backup_workers_nothing_waits_and_what_is_later_than_the_bound_is_dropped():
    queue = WorkQueue(total_samples=8, global_batch=1, staleness_bound=1, backup_workers=1)
    slow = queue.assign(0)
    for _ in range(2):
        queue.accept(queue.assign(1).id)
        queue.mark_applied()
    with pytest.raises(Refused, match="is late"):
        queue.accept(slow.id)
    assert queue.assign(1).start == slow.start  # its range comes first
    in_time = queue.assign(0)
    assert in_time.start == 3


def test_a_lost_workers_piece_is_handed_out_again_and_its_own_gradient_refused():
    queue = WorkQueue(total_samples=4, global_batch=2, staleness_bound=3, timeout_s=10)
    lost, late = queue.assign(0, 0.0), queue.assign(1, 5.0)
    assert queue.release(0) == [lost]
    assert queue.expire(16.0) == [late]
    again = [queue.assign(2, 16.0), queue.assign(3, 16.0)]
    assert [work.start for work in again] == [0, 2]
    for work in (lost, late):
        with pytest.raises(Refused, match="is late"):
            queue.accept(work.id)
    with pytest.raises(Refused, match="is unknown"):
        queue.accept(12345 << 32)
    assert dict(queue.refused) == {"late": 2, "unknown": 1}


def test_a_gradient_is_taken_once():
    queue = WorkQueue(total_samples=4, global_batch=2, staleness_bound=1)
    work = queue.assign(0)
    queue.accept(work.id)
    with pytest.raises(Refused):
        queue.accept(work.id)
    queue.mark_applied()
    with pytest.raises(Refused):
        queue.accept(work.id)
    assert queue.samples == 2


SETTINGS = st.tuples(
    st.integers(1, 60), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2)
)  # samples, batch, gradients, bound, backups


@given(settings=SETTINGS, workers=st.integers(1, 6), events=st.lists(st.integers(0, 10_000), max_size=150))
def test_whatever_happens_bounds_are_kept_and_each_sample_is_applied_once(settings, workers, events):
    total, batch, gradients, bound, backups = settings
    gradients = min(gradients, batch)
    facts = {"total_samples": total, "global_batch": batch, "gradients_per_update": gradients}
    facts |= {"staleness_bound": bound, "backup_workers": backups}
    queue, lives = WorkQueue(**facts, nonce=1, timeout_s=50), 1
    hands, old, counts, now = {}, [], [0] * total, 0.0

    def one(event):
        nonlocal queue, lives, hands, now
        now += 1
        worker, what = event % workers, event // workers % 20
        if what < 8 and worker not in hands:
            work = queue.assign(worker, now)
            if work:
                hands[worker] = work
        elif what < 16 and worker in hands:
            work = hands.pop(worker)
            old.append(work.id)
            with contextlib.suppress(Refused):
                queue.accept(work.id)
        elif what == 16:
            queue.release(worker)
        elif what == 17:
            queue.expire(now)
        elif what == 18 and event % 7 == 0:  # the server dies and starts anew from here
            state, lives = queue.state_dict(), lives + 1
            queue = WorkQueue(**facts, nonce=lives, timeout_s=50)
            queue.load_state_dict(state)
        elif old:
            with pytest.raises(Refused):
                queue.accept(old[event % len(old)])
        while ready := queue.ready():
            assert all(0 <= tau <= bound for _, tau in ready)
            assert len(ready) == gradients or queue.samples + sum(work.num_samples for work, _ in ready) == total
            for work, _ in ready:
                for i in range(work.start, work.start + work.num_samples):
                    counts[i] += 1
            queue.mark_applied()

    for event in events:
        one(event)
    for step in range(20 * total + 200):  # nothing is ever stuck
        if queue.done:
            break
        worker = step % workers
        one(worker + workers * (8 if worker in hands else 0))
    assert queue.done
    assert counts == [1] * total
    assert queue.applied_ranges == [[0, total]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_samples": 0}, "total_samples = 0"),
        ({"gradients_per_update": 9}, "gradients_per_update = 9: more than the 8 samples of an update"),
        ({"staleness_bound": -1}, "staleness_bound = -1"),
        ({"backup_workers": -1}, "staleness_bound = 0, backup_workers = -1: neither may be below zero; raise it"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(UserError, match=message):
        WorkQueue(**{"total_samples": 100, "global_batch": 8, **changes})
