import json

import pytest

from bigbatch.core.checks import UserError
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import Link, link_of
from bigbatch.simulate.strategies import seconds_per_update
from bigbatch.study.simulate import simulate

CASE = Case(workers=4, link=Link(0.5, 0.25, 0.125), model_bytes=8, step_s=3.0, bucket_bytes=4, servers=2)


def test_a_row_hand_worked():
    """4 workers of 32 samples in 9.75 s, by halving and doubling: 13.1 samples/s; a million takes 76,172 s of 4 workers, 84.6 hours."""
    row = simulate(CASE).fastest(4, exact=True)
    assert row.strategy == "halving_doubling"
    assert row.seconds == 9.75
    assert row.efficiency == pytest.approx(3 / 9.75)
    assert row.samples_per_s == pytest.approx(4 * 32 / 9.75)
    assert row.worker_hours == pytest.approx(1e6 / (4 * 32 / 9.75) * 4 / 3600)


def test_servers_are_paid_for():
    rows = {row.strategy: row for row in simulate(CASE).rows[4]}
    row = rows["parameter_server"]
    assert row.worker_hours == pytest.approx(1e6 / row.samples_per_s * 6 / 3600)


def test_sentence_names_both_winners_and_what_the_faster_needs():
    """9.75 s against 10.5 s of gloo's ring; gossip with one peer takes 3.5 s."""
    found = simulate(CASE)
    assert found.sentence() == (
        "4 workers: halving_doubling wins among exact updates, 9.75 s at 30.8 %, 1.08 times as fast as gloo_ring; "
        "gossip_one_peer_exponential takes 3.5 s: it wins if it needs less than 179 % more updates"
    )
    assert found.sentence(2).startswith("2 workers: ")


def test_a_fast_network_has_no_winner():
    sentence = simulate(Case(workers=4, link=Link(0.0, 1e-15), model_bytes=8, step_s=3.0)).sentence()
    assert "wins among exact updates, 3 s at 100 %, as fast as" in sentence
    assert sentence.endswith("; no other way is faster per update")


def test_numbers_of_workers():
    assert simulate(Case(**{**vars(CASE), "workers": 12})).workers == (2, 4, 8, 12)
    assert simulate(Case(**{**vars(CASE), "workers": 1})).workers == (1,)
    some = simulate(CASE, workers=[8, 2, 2])
    assert some.workers == (2, 8)
    assert some.case.workers == 8
    over, most = some.tables()
    assert [row[0] for row in over.rows] == ["2", "8"]
    assert most.title == "8 workers"


def test_what_is_stored_and_shown():
    found = simulate(CASE, price=2.0)
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["case"]["link"] == {"alpha_s": 0.5, "beta_s_per_byte": 0.25, "gamma_s_per_byte": 0.125}
    assert [(row["workers"], row["strategy"]) for row in stored["rows"]] == [(n, row.strategy) for n in (2, 4) for row in found.rows[n]]
    table = found.tables()[1]
    cells = {row[0]: row for row in table.rows}
    assert table.columns[5] == "cost / 1M samples"
    assert cells["halving_doubling"][1:6] == ["exact", "9.75 s", "30.8 %", "13", "169"]
    assert simulate(CASE).tables()[1].columns[5] == "worker-hours / 1M samples"


def test_doubts_are_those_of_the_case():
    doubts = " ".join(simulate(CASE).doubts())
    assert "per update" in doubts
    assert "give --spread" in doubts
    assert "workers of one host" not in doubts
    other = " ".join(simulate(Case(**{**vars(CASE), "spread": 0.1, "workers_per_host": 2})).doubts())
    assert "give --spread" not in other
    assert "workers of one host" in other


def test_seconds_are_those_of_the_strategies():
    case = Case(256, link_of(bandwidth_bytes_per_s=6.25e9, latency_s=50e-6), 1e8, 0.12)
    for n, rows in simulate(case).rows.items():
        assert [row.seconds for row in rows] == sorted(row.seconds for row in rows)
        for row in rows:
            assert row.seconds == seconds_per_update(row.strategy, Case(n, case.link, 1e8, 0.12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"local_batch": 0}, "local_batch = 0: must be a finite number above zero"),
        ({"price": 0.0}, "price = 0.0: must be a finite number above zero"),
        ({"workers": [0, 2]}, "workers = 0: must be 1 or more"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        simulate(CASE, **arguments)
