import dataclasses
import json
import math

import pytest

from bigbatch.core.checks import UserError
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import Link, link_of
from bigbatch.simulate.strategies import seconds_per_update
from bigbatch.study.simulate.simulate import simulate

CASE = Case(workers=4, link=Link(0.5, 0.25, 0.125), model_bytes=8, step_s=3.0, bucket_bytes=4, servers=2)
INTERNET = Case(4096, link_of(bandwidth_bytes_per_s=125e6, latency_s=0.1), 2e9, 1.0, spread=0.1, lost_every_s=86400.0)


def test_a_row_hand_worked():
    """4 workers of 32 samples in 8.5 s, in one bucket: 15.1 samples/s; a million takes 66,406 s of 4 workers, 73.8 hours."""
    row = simulate(CASE).fastest(4, exact=True)
    assert row.strategy == "one_bucket"
    assert row.seconds == 8.5
    assert row.efficiency == pytest.approx(3 / 8.5)
    assert row.samples_per_s == pytest.approx(4 * 32 / 8.5)
    assert row.worker_hours == pytest.approx(1e6 / (4 * 32 / 8.5) * 4 / 3600)
    assert (row.sent_bytes, row.goodput) == (12.0, 1.0)


def test_servers_are_paid_for():
    rows = {row.strategy: row for row in simulate(CASE).rows[4]}
    row = rows["parameter_server"]
    assert row.worker_hours == pytest.approx(1e6 / row.samples_per_s * 6 / 3600)


def test_sentence_names_both_winners_and_what_the_faster_needs():
    """8.5 s against 9.75 s of halving and doubling; a step hides a fragment of 4 bytes in 4 bits."""
    found = simulate(CASE)
    assert found.sentence() == (
        "4 workers: one_bucket wins among exact updates, 8.5 s at 35.3 %, 1.15 times as fast as halving_doubling; "
        "streaming_diloco_int4 takes 3 s: it wins if it needs less than 183 % more updates"
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
    assert table.columns[4:7] == ["sent", "samples/s", "cost / 1M samples"]
    assert cells["halving_doubling"][1:7] == ["exact", "9.75 s", "30.8 %", "0.012 kB", "13.1", "169"]
    assert table.spare == ("sent", "samples/s", "cost / 1M samples", "what happens")
    assert simulate(CASE).tables()[1].columns[6] == "worker-hours / 1M samples"


def test_losses_are_in_every_number():
    """4,096 workers, each lost once a day: one every 21.1 s. What takes 35 s alone stops for 60 s with each."""
    found = simulate(INTERNET, workers=[16, 4096])
    assert found.sentence() == (
        "4,096 workers: one_bucket wins among exact updates, 361 s at 0.277 %, 6,684 times as fast as halving_doubling; "
        "noloco takes 2.09 s: it wins if it needs less than 172 times as many updates; "
        "with a worker lost every 21.1 s, 9.91 % of the time counts in one_bucket, 99.9 % in noloco"
    )
    rows = {row.strategy: row for row in found.rows[4096]}
    alone = seconds_per_update("one_bucket", dataclasses.replace(INTERNET, lost_every_s=None))
    losses = 4096 * alone / 86400
    assert rows["one_bucket"].seconds == pytest.approx(alone * (1 + 60 * 4096 / 86400) * (math.exp(losses) - 1) / losses)
    assert rows["noloco"].efficiency == pytest.approx(1 / rows["noloco"].seconds)
    assert found.tables()[1].columns[4:6] == ["sent", "goodput"]
    assert "ring_all_reduce" not in rows
    assert "ring_all_reduce" in {row.strategy for row in found.rows[16]}
    assert "not in the table, never done between two losses: ring_all_reduce, " in " ".join(found.doubts())
    assert json.loads(json.dumps(found.to_dict()))["case"]["lost_every_s"] == 86400.0


def test_where_no_exact_update_is_ever_done():
    """One of 4,096 is lost every 0.88 s; two workers that live for a millisecond do nothing at all."""
    found = simulate(dataclasses.replace(INTERNET, lost_every_s=3600.0))
    sentence = "4,096 workers: no exact update is done before a worker is lost, one every 879 ms; of the others noloco is fastest, 2."
    assert found.sentence().startswith(sentence)
    assert found.fastest(4096, exact=True) is None
    over, _ = found.tables()
    assert over.rows[-1][1:5] == ["none", "", "", "noloco"]
    with pytest.raises(UserError, match="lost_every_s = 0.001: with 2 workers no update is done between two losses; give a longer time"):
        simulate(dataclasses.replace(INTERNET, lost_every_s=0.001))


def test_the_only_exact_way_is_said_to_be():
    """10 s between losses: one bucket of 35 s now and then, 80 buckets never."""
    found = simulate(dataclasses.replace(INTERNET, lost_every_s=30.0 * 4096 / 3), workers=[4096])
    assert ", the only one that is ever done; " in found.sentence()


def test_doubts_are_those_of_the_case():
    doubts = " ".join(simulate(CASE).doubts())
    assert "per update" in doubts
    assert "give --spread" in doubts
    assert "workers of one host" not in doubts
    other = " ".join(simulate(Case(**{**vars(CASE), "spread": 0.1, "workers_per_host": 2})).doubts())
    assert "give --spread" not in other
    assert "workers of one host" in other
    near = dataclasses.replace(CASE, link=Link(0.0099, 0.25))
    assert "1.08 to 1.92 times" not in " ".join(simulate(near).doubts())
    far = dataclasses.replace(CASE, link=Link(0.01, 0.25))
    assert "1.08 to 1.92 times" in " ".join(simulate(far).doubts())
    assert "--lost-every, such as 24h" in " ".join(simulate(far).doubts())
    assert "--all-reduce gloo_ring" in " ".join(simulate(far).doubts())
    rings = dataclasses.replace(far, all_reduce="gloo_ring", lost_every_s=1e6, workers_per_host=2, host_link=Link(0.0, 0.0))
    of_losses = " ".join(simulate(rings).doubts())
    assert "one by one and at random" in of_losses
    assert "never done" not in of_losses
    assert not any(text in of_losses for text in ("--all-reduce", "--lost-every", "workers of one host"))


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
