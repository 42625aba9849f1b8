import pytest

from bigbatch.comm.parameter_server.backup_workers import num_gradients, update_seconds
from bigbatch.comm.parameter_server.work_queue import Refused, WorkQueue
from bigbatch.core.checks import UserError


def test_hand_worked():
    assert num_gradients(6, 2) == 4
    seconds = [4.0, 1.0, 1.2, 1.1]
    assert [update_seconds(seconds, b) for b in range(4)] == [4.0, 1.2, 1.1, 1.0]


def test_the_first_gradients_make_the_update_and_the_late_ones_samples_come_first_in_the_next():
    queue = WorkQueue(total_samples=12, global_batch=4, gradients_per_update=2, backup_workers=1)
    a, b, c = (queue.assign(worker) for worker in range(3))
    assert queue.assign(3) is None
    assert [w.start for w in (a, b, c)] == [0, 2, 4]
    queue.accept(c.id)
    queue.accept(a.id)
    assert [work.start for work, _ in queue.ready()] == [0, 4]
    queue.mark_applied()
    with pytest.raises(Refused, match="is late"):
        queue.accept(b.id)
    again = queue.assign(1)
    assert (again.start, again.version) == (2, 1)
    assert again.id != b.id


def test_a_worker_is_not_its_own_backup_but_stands_in_for_one_that_is_lost():
    queue = WorkQueue(total_samples=12, global_batch=4, gradients_per_update=2, backup_workers=1)
    first, _ = queue.assign(0), queue.assign(1)
    queue.accept(first.id)
    assert queue.assign(0) is None
    queue.release(1)
    assert queue.assign(0).start == 2


def test_somebody_must_be_waited_for():
    with pytest.raises(UserError, match="backup_workers = 4 of 4 workers: none would be left"):
        num_gradients(4, 4)
