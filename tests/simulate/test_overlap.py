"""Overlap, by hand, by properties, and beside what benchmarks/overlap.py measured between hosts with slow links."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.alpha_beta import AlphaBeta
from bigbatch.simulate.overlap import Bucket, backward_and_exchange_s, even_buckets

MEASURED = json.loads((Path(__file__).resolve().parents[2] / "benchmarks" / "overlap.json").read_text())["results"]


def cost_of_all(num_bytes):
    return AlphaBeta(alpha_s=1.0, beta_s_per_byte=0.5)


buckets = st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), min_size=1, max_size=12).map(
    lambda pairs: [Bucket(size, ready) for (size, _), ready in zip(pairs, sorted(r for _, r in pairs), strict=True)]
)
costs = st.builds(AlphaBeta, st.floats(0, 10), st.floats(1e-3, 1))


def test_hand_worked():
    """Ready at 2 and 4 s; each takes 1 + 2 s: 2 to 5, 5 to 8."""
    assert backward_and_exchange_s([Bucket(4, 0.5), Bucket(4, 1.0)], cost_of_all, backward_s=4.0) == 8.0


def test_two_in_flight_share_the_wire_and_not_the_latency():
    """Ready at 0: the first is on the wire from 1 to 3, the second, whose second of latency is over too, to 5; the third to 7."""
    three = [Bucket(4, 0.0)] * 3
    assert backward_and_exchange_s(three, cost_of_all, backward_s=1.0, streams=2) == 7.0
    assert backward_and_exchange_s(three, cost_of_all, backward_s=1.0, streams=1) == 9.0


def test_compression_divides_bytes_alone():
    assert backward_and_exchange_s([Bucket(4, 1.0)], cost_of_all, backward_s=4.0, compression=2.0) == 4 + 1 + 1


def test_a_long_backward_pass_hides_all_but_the_last():
    assert backward_and_exchange_s(even_buckets(40, 10), cost_of_all, backward_s=400.0) == 400 + 1 + 5


@given(buckets, costs, st.floats(0.1, 100), st.integers(1, 5))
def test_bounds(gradients, cost, backward_s, streams):
    """Never before the backward pass, the wire, or the last bucket allow; never after one thing at a time; more in flight never hurts."""
    took = backward_and_exchange_s(gradients, lambda b: cost, backward_s=backward_s, streams=streams)
    wire = cost.beta_s_per_byte * sum(bucket.num_bytes for bucket in gradients)
    assert took >= max(backward_s, wire, gradients[-1].ready * backward_s + cost.seconds(gradients[-1].num_bytes)) * (1 - 1e-9)
    assert took <= (backward_s + sum(cost.seconds(bucket.num_bytes) for bucket in gradients)) * (1 + 1e-9)
    assert backward_and_exchange_s(gradients, lambda b: cost, backward_s=backward_s, streams=streams + 1) <= took * (1 + 1e-9)


@given(st.floats(1, 1e9), st.floats(1, 1e9))
def test_even_buckets_hold_everything(model_bytes, bucket_bytes):
    if model_bytes / bucket_bytes < 10_000:
        found = even_buckets(model_bytes, bucket_bytes)
        assert sum(bucket.num_bytes for bucket in found) == pytest.approx(model_bytes)
        assert max(bucket.num_bytes for bucket in found) <= bucket_bytes * (1 + 1e-9)
        assert found[-1].ready == 1.0


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row['layers']}-{row['hosts']}")
@pytest.mark.parametrize(("arm", "number"), [("default bucket", 12), ("bucket 1 MB", 12), ("bucket 25 MB", 1)])
def test_what_was_measured(row, arm, number):
    """12 equal layers, 23.5 MB over 100 Mbit/s; the all-reduce and the compute as measured alone. Within 15 %, 5 % where layers sleep."""
    alone = {name: each["median_s"] for name, each in row["arms"].items()}
    cost, buckets = AlphaBeta(0.0, alone["communication only"]), even_buckets(1.0, 1.0 / number)
    backward_s = alone["compute only"] - row["forward_s"]
    predicted = row["forward_s"] + backward_and_exchange_s(buckets, lambda b: cost, backward_s=backward_s)
    assert predicted == pytest.approx(alone[arm], rel=0.15 if row["layers"] == "computing" else 0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: even_buckets(0, 1), "model_bytes = 0: must be a finite number above zero"),
        (lambda: even_buckets(1, -1), "bucket_bytes = -1: must be a finite number above zero"),
        (lambda: backward_and_exchange_s([], cost_of_all, backward_s=0.0), "backward_s = 0.0: must be a finite number above zero"),
        (
            lambda: backward_and_exchange_s([], cost_of_all, backward_s=1.0, streams=0),
            "streams = 0: must be 1 or more; 1 is one",
        ),
        (
            lambda: backward_and_exchange_s([], cost_of_all, backward_s=1.0, compression=0),
            "compression = 0: must be a finite number",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(UserError, match=message):
        call()
