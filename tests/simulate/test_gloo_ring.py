"""gloo's ring, by hand, by properties, and beside what was measured between hosts with slow links (benchmarks/links_check.py)."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.simulate.all_reduce import ring
from bigbatch.simulate.gloo_ring import gloo_ring, gloo_ring_s, segments
from bigbatch.simulate.link import Link

MEASURED = json.loads((Path(__file__).resolve().parents[2] / "benchmarks" / "links_check.json").read_text())["rows"]
links = st.builds(Link, st.floats(0, 1e-1), st.floats(1e-12, 1e-6), st.floats(0, 1e-6))


def test_hand_worked_where_the_wire_is_never_idle():
    """3 hosts, 6 segments of 4 bytes: 4 go on in each phase, each 1.5 s with the addition, then 1 s."""
    assert gloo_ring_s(Link(0.5, 0.25, 0.125), 3, 24) == (4 * 1.5 + 0.5) + (4 * 1.0 + 0.5)


def test_hand_worked_where_latency_rules():
    """The same with 10 s of latency: two pairs of 11.5 and of 11 s, and the second of the last pair behind the first."""
    assert gloo_ring_s(Link(10.0, 0.25, 0.125), 3, 24) == (2 * 11.5 + 1.5) + (2 * 11.0 + 1.0)


def test_an_odd_number_of_segments():
    """2 hosts, 6 segments of 2^20 - 2^20/3 bytes: 3 go on, a pair and one alone."""
    assert segments(2, 4 * 2**20 + 1) == 6
    assert gloo_ring_s(Link(10.0, 0.0), 2, 4 * 2**20 + 1) == 2 * (2 * 10.0)


@given(links, st.integers(2, 300), st.floats(1, 1e9))
def test_between_the_wire_and_the_textbook(link, hosts, num_bytes):
    """Never faster than the wire; where a share has just two segments, never slower than messages that wait for each other."""
    seconds, textbook = gloo_ring_s(link, hosts, num_bytes), ring(link, hosts)
    assert seconds >= textbook.beta_s_per_byte * num_bytes * (1 - 1e-9)
    if segments(hosts, num_bytes) == 2 * hosts:
        assert seconds <= textbook.seconds(num_bytes) * (1 + 1e-9)
    assert gloo_ring(link, hosts, num_bytes).seconds(num_bytes) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "row",
    [row for row in MEASURED if row["exchange"].startswith("all-reduce") and row["rate_mbit"]],
    ids=lambda row: f"{row['exchange']}-{row['hosts']}-{row['delay_ms']}",
)
def test_what_was_measured(row):
    """100 Mbit/s on the wire are 95.5 with headers; a delay of 10 ms is a latency of 25. Within 10 %."""
    link = Link(0.025 if row["delay_ms"] else 0.0002, 8 / (1e6 * row["rate_mbit"] * 0.955))
    num_bytes = 1e6 * int(row["exchange"].split()[1])
    assert gloo_ring_s(link, row["hosts"], num_bytes) == pytest.approx(row["median_s"], rel=0.1)


@pytest.mark.parametrize(("hosts", "megabytes", "seconds"), [(4, 25, 0.507), (4, 1, 0.159), (4, 0.1, 0.155), (8, 0.1, 0.337)])
def test_what_was_measured_with_a_delay_alone(hosts, megabytes, seconds):
    """10 ms, 5 Gbit/s through the switch; the closing barrier, 43 ms with 4 hosts and 65 with 8, is taken off."""
    assert gloo_ring_s(Link(0.025, 8 / 5e9), hosts, 1e6 * megabytes) == pytest.approx(seconds, rel=0.1)
