import dataclasses

import pytest

from bigbatch.core.checks import UserError
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import Link
from bigbatch.study.critical.time_to_target import TradeOff, time_to_target, trade_off_of

FREE = Case(workers=4, link=Link(0.0, 1e-15), model_bytes=8, step_s=3.2)
CURVE = TradeOff(min_steps=100, min_samples=100_000)  # a critical batch of 1,000


def test_hand_worked():
    """A free network, 0.1 s a sample. At the critical batch: 200 updates of 1,000 samples on 4 workers, 25 s each, 5,000 s, 5.56 h of 4."""
    found = time_to_target(FREE, CURVE, workers=[4], local_batch=32)
    (way,) = [way for way in found.ways if way.global_batch == 1000]
    assert way.updates == 200
    assert way.seconds_per_update == pytest.approx(25.0)
    assert way.seconds == pytest.approx(5000.0)
    assert way.worker_hours == pytest.approx(4 * 5000 / 3600)


def test_where_waiting_is_free_small_batches_win_and_workers_divide_the_time():
    """Samples are all that counts: the smallest batch, whose 1,000/64 rounds to 16 samples, needs E_min (1 + 16/1000)."""
    found = time_to_target(FREE, CURVE, workers=[1, 4, 16], local_batch=32)
    assert [way.global_batch for way in found.fastest] == [16, 16, 16]
    assert [way.seconds for way in found.fastest] == pytest.approx([0.1 * 101_600 / n for n in (1, 4, 16)])


def test_where_the_network_is_slow_larger_batches_win():
    """An update costs its latencies whatever its batch, so that the best batch grows with them."""
    slow = [dataclasses.replace(FREE, link=Link(alpha, 1e-15)) for alpha in (0.0, 0.1, 1.0, 10.0)]
    best = [time_to_target(case, CURVE, workers=[16], local_batch=32).fastest[0].global_batch for case in slow]
    assert best == sorted(best)
    assert best[0] == 16
    assert best[-1] > 1000


def test_a_fixed_part_of_the_step():
    """1.2 s whatever the samples, and 2 s for 32: 1.2 + 2 x 250/32 at 1,000 samples on 4 workers."""
    found = time_to_target(FREE, CURVE, workers=[4], local_batch=32, fixed_s=1.2)
    assert next(way for way in found.ways if way.global_batch == 1000).seconds_per_update == pytest.approx(1.2 + 2 * 250 / 32)


def test_only_exact_updates_count_and_servers_are_paid():
    found = time_to_target(dataclasses.replace(FREE, link=Link(1.0, 0.01)), CURVE, workers=[2, 4], local_batch=32)
    assert {way.strategy for way in found.ways} <= {"ring_all_reduce", "gloo_ring", "halving_doubling", "tree", "parameter_server"}
    for way in found.ways:
        paid = way.workers + (way.strategy == "parameter_server")
        assert way.worker_hours == pytest.approx(paid * way.seconds / 3600)


def test_in_words():
    found = time_to_target(FREE, CURVE, workers=[1, 4], local_batch=32, price=2.0)
    assert found.sentence() == (
        "to the target, fastest: 0.706 h and a cost of 5.64 with 4 workers at a batch of 16; "
        "cheapest: 2.82 h and a cost of 5.64 with 1 worker at a batch of 16"
    )
    assert found.table().columns[5] == "cost"
    assert found.table().rows[1][:6] == ["4", "16", "6,350", "400 ms", "0.706 h", "5.64"]
    assert "worker-hours" in time_to_target(FREE, CURVE, workers=[1], local_batch=32).sentence()
    assert found.to_dict()["trade_off"] == {"min_steps": 100, "min_samples": 100_000}


def test_reads_a_study():
    fit = {"min_steps": {"value": 100.0}, "min_samples": {"value": 1e5}}
    assert trade_off_of({"fit": fit}) == CURVE
    assert CURVE.critical_batch == 1000


@pytest.mark.parametrize("study", [{}, {"fit": None}, {"fit": {"min_steps": {"value": 0.0}, "min_samples": {"value": 5.0}}}])
def test_refuses_a_study_without_a_fit(study):
    with pytest.raises(UserError, match="its study has no fit with both ends; let batches above and below the critical one reach"):
        trade_off_of(study)


@pytest.mark.parametrize(
    ("curve", "fixed_s", "message"),
    [
        (TradeOff(0, 1), 0.0, "S_min = 0: must be a finite number above zero"),
        (TradeOff(1, 0), 0.0, "E_min = 0: must be a finite number above zero"),
        (CURVE, 4.0, "fixed_s = 4.0: must lie from 0 to the step's 3.2 s; give the seconds of a step of no samples"),
        (CURVE, -1.0, "fixed_s = -1.0: must lie from 0"),
    ],
)
def test_refuses(curve, fixed_s, message):
    with pytest.raises(UserError, match=message):
        time_to_target(FREE, curve, workers=[4], local_batch=32, fixed_s=fixed_s)
