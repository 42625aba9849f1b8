"""Closed forms beside a network that knows nothing of them: every message through its ports."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.simulate import discrete_event, parameter_server
from bigbatch.simulate.all_reduce import ALL_REDUCES, all_reduce
from bigbatch.simulate.discrete_event import Network
from bigbatch.simulate.gossip import degree, exchange_s
from bigbatch.simulate.link import Link
from bigbatch.simulate.overlap import backward_and_exchange_s, even_buckets
from bigbatch.simulate.straggler import expected_largest, slowest, slowest_nearby

LINK = Link(50e-6, 1.6e-10, 3e-11)
links = st.builds(Link, st.floats(0, 1e-1), st.floats(1e-12, 1e-6), st.floats(0, 1e-6))
EXPONENTIAL = {"exponential": lambda n: [[1 << i for i in range((n - 1).bit_length())]]}
ONE_PEER = {"one_peer_exponential": lambda n: [[1 << i] for i in range((n - 1).bit_length())]}
HOPS = {"ring": lambda n: [[1, -1]], **EXPONENTIAL, **ONE_PEER}


def test_ports_hand_worked():
    """1 s of latency, 2 s a message of 8 bytes. From 0 to 1 and 2: they leave at 0 and 2. From 2 to 1 at 0: its port is free at 3."""
    network = Network(Link(1.0, 0.25), 3)
    there = network.send(np.array([0, 0, 2]), np.array([1, 2, 1]), 8, np.zeros(3))
    assert there.tolist() == [3.0, 5.0, 5.0]
    again = network.send(np.array([0, 1]), np.array([1, 0]), 8, np.array([0.0, 10.0]), added=True)
    assert again.tolist() == [7.0, 13.0]  # 0's port is free at 4, 1's at 5


@pytest.mark.parametrize("hosts", [2, 3, 5, 6, 64, 100, 1024, 4096])
@pytest.mark.parametrize("name", ALL_REDUCES)
def test_all_reduces(name, hosts):
    took = discrete_event.ALL_REDUCES[name](Network(LINK, hosts), 1e8, np.zeros(hosts)).max()
    closed = all_reduce(name, LINK, hosts, 1e8).seconds(1e8)
    if name == "tree" and hosts & (hosts - 1):  # who has no children sends early, and its latency is over when its turn comes
        assert closed * 0.95 < took < closed
    else:
        assert took == pytest.approx(closed)


@given(links, st.integers(2, 40), st.floats(1, 1e9), st.sampled_from(ALL_REDUCES))
def test_all_reduces_on_any_link(link, hosts, num_bytes, name):
    took = discrete_event.ALL_REDUCES[name](Network(link, hosts), num_bytes, np.zeros(hosts)).max()
    closed = all_reduce(name, link, hosts, num_bytes).seconds(num_bytes)
    assert took <= closed * (1 + 1e-9)
    assert name == "tree" or took == pytest.approx(closed)


@pytest.mark.parametrize("name", ALL_REDUCES)
@pytest.mark.parametrize("bucket_bytes", [4e6, 30e6, 2e8])
def test_overlap(name, bucket_bytes):
    buckets = even_buckets(1e8, bucket_bytes)
    took = discrete_event.overlapped(LINK, name, buckets, np.full(16, 0.18), backward_share=2 / 3)
    closed = backward_and_exchange_s(buckets, lambda size: all_reduce(name, LINK, 16, size), backward_s=0.12)
    assert took == pytest.approx(0.06 + closed)


@pytest.mark.parametrize("name", ["ring", "halving_doubling"])
def test_the_slowest_host_sets_the_pace_of_an_all_reduce(name):
    """64 hosts, times 5 % apart: one bucket, so that all is sent at the end. Mean of 300 updates within 4 standard errors."""
    draws = 1 + 0.05 * np.random.default_rng(0).standard_normal((300, 64))
    buckets = even_buckets(1e6, 1e6)
    took = np.array([discrete_event.overlapped(LINK, name, buckets, times, backward_share=0.5) for times in draws])
    closed = slowest(64, 0.05) + all_reduce(name, LINK, 64, 1e6).seconds(1e6)
    assert took.mean() == pytest.approx(closed, abs=4 * took.std() / np.sqrt(300) + 1e-3)


@pytest.mark.parametrize("hosts", [4, 16, 64, 4096])
@pytest.mark.parametrize("name", HOPS)
@pytest.mark.parametrize("overlap", [True, False])
def test_gossip(name, hosts, overlap):
    exchanged_s = exchange_s(LINK, 1e8, degree(name, hosts))
    for compute_s in (exchanged_s / 3, 2 * exchanged_s):
        ends = discrete_event.gossip(LINK, HOPS[name](hosts), 1e8, np.full((6, hosts), compute_s), overlap=overlap)
        closed = max(compute_s, exchanged_s) if overlap else compute_s + exchanged_s
        assert np.diff(ends.max(axis=1)) == pytest.approx(closed)


@pytest.mark.parametrize("hosts", [8, 64, 1024])
@pytest.mark.parametrize("name", HOPS)
@pytest.mark.parametrize("spread", [0.05, 0.2])
def test_who_waits_in_gossip(name, hosts, spread):
    """After computing, waiting is below its bound and above half of it; while computing, below a fifth of what waiting for all would be."""
    times = 1 + spread * np.random.default_rng(0).standard_normal((400, hosts))
    hops, free = HOPS[name](hosts), Link(0.0, 1e-12)
    after, during = (
        (np.diff(discrete_event.gossip(free, hops, 1.0, times, overlap=overlap).mean(axis=1))[100:].mean() - 1) / spread
        for overlap in (False, True)
    )
    bound = (slowest_nearby(hosts, spread, degree(name, hosts) + 1) - 1) / spread
    assert bound / 2 < after < bound * 1.02
    assert abs(during) < 0.2 * expected_largest(hosts)


@pytest.mark.parametrize(("workers", "servers"), [(1, 1), (4, 1), (5, 2), (64, 8), (100, 7), (4096, 16)])
def test_parameter_server(workers, servers):
    took = discrete_event.parameter_server(LINK, 1e8, np.full(workers, 0.1), servers=servers)
    assert took == pytest.approx(parameter_server.synchronous_s(LINK, 1e8, workers=workers, servers=servers, compute_s=0.1))


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16, 256])
def test_asynchronous_server(workers):
    """Below and above what the server's port can take in: 100 s of updates, of which the start is 1 % at most."""
    took = discrete_event.asynchronous_server(LINK, 1e8, 0.1, workers=workers, gradients=200 * workers) / 200
    assert took == pytest.approx(parameter_server.asynchronous_s(LINK, 1e8, workers=workers, servers=1, compute_s=0.1), rel=0.01)
