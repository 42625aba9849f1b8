import pytest

from bigbatch.comm.parameter_server.backup_workers import num_gradients, update_seconds
from bigbatch.comm.parameter_server.ledger import Ledger, Refused
from bigbatch.core.checks import UserError


def test_hand_worked():
    assert num_gradients(6, 2) == 4
    seconds = [4.0, 1.0, 1.2, 1.1]
    assert [update_seconds(seconds, b) for b in range(4)] == [4.0, 1.2, 1.1, 1.0]


def test_the_first_gradients_make_the_update_and_the_late_ones_samples_come_first_in_the_next():
    ledger = Ledger(total_samples=12, global_batch=4, gradients_per_update=2, backup_workers=1)
    a, b, c = (ledger.hand_out(worker) for worker in range(3))
    assert ledger.hand_out(3) is None
    assert [w.start for w in (a, b, c)] == [0, 2, 4]
    ledger.give(c.id)
    ledger.give(a.id)
    assert [work.start for work, _ in ledger.ready()] == [0, 4]
    ledger.applied()
    with pytest.raises(Refused, match="is late"):
        ledger.give(b.id)
    again = ledger.hand_out(1)
    assert (again.start, again.version) == (2, 1)
    assert again.id != b.id


def test_a_worker_is_not_its_own_backup_but_stands_in_for_one_that_is_lost():
    ledger = Ledger(total_samples=12, global_batch=4, gradients_per_update=2, backup_workers=1)
    first, _ = ledger.hand_out(0), ledger.hand_out(1)
    ledger.give(first.id)
    assert ledger.hand_out(0) is None
    ledger.drop(1)
    assert ledger.hand_out(0).start == 2


def test_somebody_must_be_waited_for():
    with pytest.raises(UserError, match="backup_workers = 4 of 4 workers: none would be left"):
        num_gradients(4, 4)
