"""Outer steps by hand, and beside a network that knows only messages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.comm.compression.quantized import Quantized
from bigbatch.comm.compression.sparse_loco import SparseLoCo
from bigbatch.core.checks import UserError
from bigbatch.simulate import discrete_event
from bigbatch.simulate.all_reduce import all_reduce
from bigbatch.simulate.discrete_event import Network
from bigbatch.simulate.link import Link
from bigbatch.simulate.outer import (
    gather_rounds,
    gather_s,
    pair_s,
    quantized_all_reduce_s,
    quantized_bytes,
    sparse_bytes,
    streaming_s,
)
from bigbatch.simulate.straggler import expected_largest, slowest, slowest_nearby

INTERNET = Link(0.1, 8e-9)
FREE = Link(0.0, 1e-12)


def test_bytes_hand_worked():
    """1,024 values: 4 scales. 4,096 values: 64 indices of 12 bits and values of 2, and a scale; a chunk that is not full costs as much."""
    assert quantized_bytes(4096, 8) == 1024 + 4 * 4
    assert quantized_bytes(4096, 4) == 512 + 4 * 4
    assert sparse_bytes(4 * 4096) == 64 * 14 / 8 + 8
    assert sparse_bytes(4) == 120
    assert 4 * 4096 / sparse_bytes(4 * 4096) == pytest.approx(136.53, abs=0.01)


def test_exchanges_hand_worked():
    """4 hosts, 0.5 s a message, 0.25 s a byte, 0.125 s an addition; 1,024 bytes in 4 bits are 132, shards 33."""
    link = Link(0.5, 0.25, 0.125)
    assert gather_s(link, 4, 8, ring=True) == 3 * (0.5 + 8 * 0.375)
    assert gather_s(link, 4, 8, ring=False, added=False) == 2 * 0.5 + 3 * 8 * 0.25
    scatter_s = 0.5 + 3 * (33 * 0.25 + 256 * 0.125)
    assert quantized_all_reduce_s(link, 4, 1024, bits=4) == scatter_s + 2 * 0.5 + 3 * 33 * 0.25
    assert quantized_all_reduce_s(link, 4, 1024, bits=4, ring=True) == scatter_s + 3 * (0.5 + 33 * 0.25)
    assert pair_s(link, 8, 4) == 0.5 + 16 * 0.375
    assert (quantized_all_reduce_s(link, 1, 1024, bits=4), pair_s(link, 8, 1), gather_s(link, 1, 8, ring=True)) == (0.0, 0.0, 0.0)


def test_streaming_hand_worked():
    """10 s of exchange, every 5 updates of 2 s: 2 updates hide 4, 5 hide all, and no more than 5 can hide any."""
    assert streaming_s(2.0, 10.0, every=5, delay=0) == 2 + 10 / 5
    assert streaming_s(2.0, 10.0, every=5, delay=2) == 2 + 6 / 5
    assert streaming_s(2.0, 10.0, every=5, delay=5) == 2.0
    assert streaming_s(2.0, 15.0, every=5, delay=50) == pytest.approx(15 / 5)  # the wire is busy all the time
    assert streaming_s(2.0, 3.0, every=5, delay=0, workers=8, spread=0.1) == pytest.approx(2 * slowest(8, 0.1, 5) + 3 / 5)


@given(
    st.floats(0.1, 10), st.floats(0, 100), st.integers(1, 20), st.integers(0, 30), st.integers(1, 5000), st.floats(0, 0.3) | st.just(0.0)
)
def test_streaming_is_the_largest_over_all_m(step_s, exchange_s, every, delay, workers, spread):
    """The closed form looks at two m only; nothing among the first 3,000 exchanges is larger. Hiding more is never slower."""
    found = streaming_s(step_s, exchange_s, every=every, delay=delay, workers=workers, spread=spread)
    hidden = min(every, delay)
    m = np.arange(1, 3001)
    waits = (expected_largest(workers) * spread * np.sqrt(m * every - hidden) + exchange_s / step_s - hidden) / (m * every)
    assert found >= step_s * (1 + max(0.0, waits.max())) * (1 - 1e-9)
    assert streaming_s(step_s, exchange_s, every=every, delay=delay + 1, workers=workers, spread=spread) <= found * (1 + 1e-9)


def direct(network, num_bytes, ready, *, added):
    """Every host sends a message to each other host, all at once."""
    n = network.hosts
    here, last = np.arange(n), ready.copy()
    for hop in range(1, n):
        targets = (here + hop) % n
        last[targets] = np.maximum(last[targets], network.send(here, targets, num_bytes, ready, added=added))
    return last


def doubling(network, num_bytes, ready, *, added):
    """Every host hands on all that it has, to 1, 2, 4, ... places away."""
    now, here = ready.copy(), np.arange(network.hosts)
    for i in range((network.hosts - 1).bit_length()):
        pieces = min(1 << i, network.hosts - (1 << i))
        targets = (here - (1 << i)) % network.hosts
        there = network.send(here, targets, pieces * num_bytes, now, added=added)
        now[targets] = np.maximum(now[targets], there)
    return now


def along_ring(network, num_bytes, ready, *, added):
    """Every host hands on the piece that it got last."""
    now, here = ready.copy(), np.arange(network.hosts)
    for _ in range(network.hosts - 1):
        there = network.send(here, (here + 1) % network.hosts, num_bytes, now, added=added)
        now = np.maximum(now, np.roll(there, 1))
    return now


@pytest.mark.parametrize("hosts", [2, 3, 7, 16, 100, 1024, 4096])
def test_gathering(hosts):
    """By doubling, any number of hosts takes lg p rounds, rounded up (Bruck et al. 1997)."""
    link = Link(0.1, 8e-9, 1e-9)
    for ring, way in ((False, doubling), (True, along_ring)):
        took = way(Network(link, hosts), 1e6, np.zeros(hosts), added=True).max()
        assert took == pytest.approx(gather_s(link, hosts, 1e6, ring=ring))
    assert gather_rounds(hosts, ring=False) <= gather_rounds(hosts, ring=True)


@pytest.mark.parametrize("hosts", [2, 3, 7, 16, 100, 1024])
@pytest.mark.parametrize("ring", [False, True])
def test_quantized_all_reduce(hosts, ring):
    network, shard = Network(INTERNET, hosts), quantized_bytes(2e9, 4) / hosts
    scattered = direct(network, shard, np.zeros(hosts), added=True)
    took = (along_ring if ring else doubling)(network, shard, scattered, added=False).max()
    assert took == pytest.approx(quantized_all_reduce_s(INTERNET, hosts, 2e9, bits=4, ring=ring))


def per_update(ends, burn):
    """Seconds per update of the last host, once it goes steadily."""
    last = ends.max(axis=1)
    return (last[-1] - last[burn - 1]) / (len(last) - burn)


@pytest.mark.parametrize(
    ("hosts", "name"), [(2, "ring"), (5, "gloo_ring"), (7, "halving_doubling"), (64, "ring"), (1024, "halving_doubling")]
)
@pytest.mark.parametrize("delay", [0, 1, 3, 5])
def test_streaming_beside_messages(hosts, name, delay):
    """Without a spread: exactly, whether the exchange is hidden in part, or not, or wholly."""
    alone = all_reduce(name, INTERNET, hosts, 1e7).seconds(1e7)
    for compute_s in (alone / 20, alone / 4, alone / 2, 2 * alone):
        ends = discrete_event.streaming(INTERNET, name, 1e7, np.full((50, hosts), compute_s), every=5, delay=delay)
        assert per_update(ends, 10) == pytest.approx(streaming_s(compute_s, alone, every=5, delay=delay))


@pytest.mark.parametrize("hosts", [2, 8, 64])
@pytest.mark.parametrize(("every", "delay"), [(2, 1), (5, 0), (5, 2), (5, 5), (8, 5)])
@pytest.mark.parametrize(("spread", "below", "above"), [(0.05, 0.01, 0.04), (0.2, 0.04, 0.1)])
def test_who_waits_in_streaming(hosts, every, delay, spread, below, above):
    """5 % apart, the closed form is 1 % below what messages say at most, and 4 % above; 20 % apart, 4 % and 10 %.

    Above: hosts that are early pass part of an all-reduce before the slowest comes.
    """
    times = 1 + spread * np.random.default_rng(1).standard_normal((300 * every, hosts))
    rounds = 2 * (hosts.bit_length() - 1)
    for exchange_s in (0.0, 0.5, 2.0, 4.9):
        link = Link(exchange_s / rounds, 1e-15)
        took = per_update(discrete_event.streaming(link, "halving_doubling", 1.0, times, every=every, delay=delay), 100 * every)
        closed = streaming_s(1.0, exchange_s, every=every, delay=delay, workers=hosts, spread=spread)
        assert (1 - below) * took < closed < (1 + above) * took


def random_pairs(hosts, rng):
    """A new matching for each exchange; of an odd number, one sits out."""

    def peers(_):
        order, peer = rng.permutation(hosts), np.arange(hosts)
        one, other = order[0 : hosts - 1 : 2], order[1:hosts:2]
        peer[one], peer[other] = other, one
        return peer

    return peers


@pytest.mark.parametrize("hosts", [2, 5, 64, 4096])
def test_pairs_beside_messages(hosts):
    """Without a spread: H updates, and one message of displacement and weights; of 5 hosts, the one that sits out is early."""
    ends = discrete_event.pairs(INTERNET, 2e7, np.full((40, hosts), 1.0), every=4, peers=random_pairs(hosts, np.random.default_rng(0)))
    closed = 1 + pair_s(INTERNET, 1e7, hosts) / 4
    assert per_update(ends, 4) == pytest.approx(closed, rel=0.01 if hosts == 5 else 1e-9)


@pytest.mark.parametrize("every", [1, 5, 30])
@pytest.mark.parametrize(("hosts", "least"), [(2, 0.9), (8, 0.65), (64, 0.8), (1024, 0.9)])
def test_who_waits_in_pairs(hosts, every, least):
    """A peer may have waited for another: more than for the slower of two alone, and 65 to 100 % of the bound that is used."""
    times = 1 + 0.05 * np.random.default_rng(0).standard_normal((300 * every, hosts))
    ends = discrete_event.pairs(FREE, 1.0, times, every=every, peers=random_pairs(hosts, np.random.default_rng(1)))
    bound = (slowest_nearby(hosts, 0.05, 2, updates=every) - 1) / 0.05
    waited = (np.diff(ends.mean(axis=1))[100 * every :].mean() - 1) / 0.05
    assert least * bound - 0.03 < waited < 1.02 * bound + 0.03
    assert waited < (slowest(hosts, 0.05, updates=every) - 1) / 0.05 + 0.03


def test_refuses():
    with pytest.raises(UserError, match="step_s = 0.0: must be a finite number above zero"):
        streaming_s(0.0, 1.0, every=5, delay=0)
    with pytest.raises(UserError, match="every = 0: must be a finite number above zero"):
        streaming_s(1.0, 1.0, every=0, delay=0)


def test_the_compressors_send_as_much():
    """The model and what is built count the same bytes, but for the padding of the last block and chunk."""
    for values in (4096 * 64, 10_000_000):
        int4, sparse = Quantized("int4"), SparseLoCo()
        assert int4.sent_bytes(values, 4, 8) == pytest.approx(2 * 7 / 8 * quantized_bytes(4 * values, 4), rel=1e-3)
        assert sparse.sent_bytes(values, 4, 8) == pytest.approx(7 * sparse_bytes(4 * values), rel=1e-3)
