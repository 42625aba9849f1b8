"""What an update costs in each way, by hand, and what must hold of all."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.all_reduce import ALL_REDUCES, all_reduce
from bigbatch.simulate.case import Case
from bigbatch.simulate.link import Link, link_of
from bigbatch.simulate.overlap import Bucket
from bigbatch.simulate.straggler import expected_largest
from bigbatch.simulate.strategies import STRATEGIES, overlapped_all_reduce_s, seconds_of_all, seconds_per_update

CASE = Case(workers=4, link=Link(0.5, 0.25, 0.125), model_bytes=8, step_s=3.0, bucket_bytes=4, local_steps=5, servers=2)
BY_HAND = {
    # Forward 1 s, backward 2 s; buckets of 4 bytes ready after 2 and 3 s; ring: 6 x 0.5 + 6/4 x 4 x 0.25 + 3/4 x 4 x 0.125 = 4.875 each
    "ring_all_reduce": 2 + 2 * 4.875,
    # 8 segments of half a byte, 6 in each phase, wires of 0.1875 and 0.125 s below the latency: 3 pairs and one wire
    "gloo_ring": 2 + 2 * (3 * 0.6875 + 0.1875 + 3 * 0.625 + 0.125),
    # 4 x 0.5 + 1.5 + 0.375 each
    "halving_doubling": 2 + 2 * 3.875,
    # 4 x 0.5 + 2 x 4 x (0.25 + 0.375) each
    "tree": 2 + 2 * 7.0,
    # halving and doubling of 2 bytes, the fastest: 2 + 0.75 + 0.1875
    "fp16": 2 + 2 * 2.9375,
    # 8/72 bytes, 3 all-reduces of 2 s, and bytes at 0.46875 s
    "powersgd": 3 + 3 * 2 + 8 / 72 * 0.46875,
    # 1 % of 8 bytes, twice: 3 messages
    "top_k": 3 + 3 * (0.5 + 0.16 * 0.375),
    # gloo's ring of 8 bytes every 5 updates, faster than halving and doubling: 3 pairs and one wire in each phase
    "local_sgd": 3 + (3 * 0.875 + 0.375 + 3 * 0.75 + 0.25) / 5,
    # each server takes 2 x 8 bytes in, and gives as many out
    "parameter_server": 3 + (0.5 + 6) + (0.5 + 4),
    # a worker's own cycle: 3 + 0.5 + 2 + 0.5 + 2; the servers need 6 for four gradients
    "asynchronous_server": 8.0,
    # 2 messages of 3 s
    "gossip_ring": 6.5,
    "gossip_torus": 6.5,
    # 3 messages
    "gossip_complete": 9.5,
    "gossip_star": 9.5,
    # 1 and 2 places: 2; on both sides the same as 3
    "gossip_exponential": 6.5,
    "gossip_symmetric_exponential": 9.5,
    # 1 message takes 3.5, computing 3
    "gossip_one_peer_exponential": 3.5,
    "gossip_random_match": 3.5,
}
cases = st.builds(
    Case,
    workers=st.integers(1, 200),
    link=st.builds(Link, st.floats(0, 0.1), st.floats(1e-12, 1e-7), st.floats(0, 1e-8)),
    model_bytes=st.floats(1e3, 1e9),
    step_s=st.floats(1e-3, 10),
    backward_share=st.floats(0.1, 1),
    spread=st.floats(0, 0.3),
    workers_per_host=st.integers(1, 8),
    streams=st.integers(1, 3),
    overlap=st.booleans(),
    local_steps=st.integers(1, 100),
    servers=st.integers(1, 8),
)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hand_worked(strategy):
    assert seconds_per_update(strategy, CASE) == pytest.approx(BY_HAND[strategy])


def test_all_of_them():
    assert seconds_of_all(CASE) == pytest.approx(BY_HAND)
    assert set(seconds_of_all(dataclasses.replace(CASE, workers=5))) == set(BY_HAND) - {"gossip_random_match"}
    assert {name for name, each in STRATEGIES.items() if each.exact} == {
        *("ring_all_reduce", "gloo_ring", "halving_doubling", "tree", "parameter_server")
    }


def test_gossip_after_computing():
    assert seconds_per_update("gossip_ring", dataclasses.replace(CASE, overlap=False)) == 3 + 6.5


def test_waiting():
    """10 %: all wait for the slowest of 4, once in 5 updates in local SGD, not at all in gossip while computing."""
    case, largest = dataclasses.replace(CASE, spread=0.1, link=Link(0.0, 1e-12)), expected_largest(4)
    assert seconds_per_update("ring_all_reduce", case) == pytest.approx(3 * (1 + 0.1 * largest))
    assert seconds_per_update("local_sgd", case) == pytest.approx(3 * (1 + 0.1 * largest / math.sqrt(5)))
    assert seconds_per_update("gossip_ring", case) == 3.0
    after = seconds_per_update("gossip_one_peer_exponential", dataclasses.replace(case, overlap=False))
    assert after == pytest.approx(3 * (1 + 0.1 * min(math.sqrt(2 * math.log(2)), largest)))


def test_hosts_of_many_workers_are_one_in_the_network():
    """10 workers on hosts of 4 are 3 hosts; their workers wait for each other."""
    case = dataclasses.replace(CASE, workers=10, workers_per_host=4, spread=0.1)
    assert case.hosts == 3
    assert case.slowest_s == pytest.approx(3 * (1 + 0.1 * expected_largest(10)))
    assert seconds_per_update("gossip_ring", dataclasses.replace(case, link=Link(0.0, 1e-12))) == 3 * (1 + 0.1 * expected_largest(4))


def test_the_fastest_is_that_of_the_whole_update():
    """Two in flight hide latency: what takes longer alone may be done earlier."""
    link = Link(0.0625, 2.12e-8, 4.75e-9)
    case = Case(61, link, 157286401.0, 1.0, backward_share=1.0, workers_per_host=6, streams=2, local_steps=1)
    each = [overlapped_all_reduce_s(case, name) for name in ALL_REDUCES]
    assert overlapped_all_reduce_s(case) == min(each)


def test_buckets_of_ones_own():
    """All at the end, in one: 3 s and an all-reduce of 8 bytes."""
    case = dataclasses.replace(CASE, buckets=(Bucket(8, 1.0),))
    assert seconds_per_update("ring_all_reduce", case) == 3 + all_reduce("ring", CASE.link, 4, 8).seconds(8)


@given(cases)
def test_nothing_is_faster_than_computing(case):
    for seconds in seconds_of_all(case).values():
        assert seconds >= case.step_s * (1 - 1e-9)


@given(cases)
def test_one_host_only_computes(case):
    alone = dataclasses.replace(case, workers=min(case.workers, case.workers_per_host))
    for name, seconds in seconds_of_all(alone).items():
        if "server" not in name and name != "local_sgd":
            assert seconds == pytest.approx(alone.slowest_s)


@given(cases, st.floats(1, 10))
def test_a_worse_network_is_never_faster(case, factor):
    alpha, beta, gamma = case.link
    for worse in (Link(factor * alpha, beta, gamma), Link(alpha, factor * beta, gamma), Link(alpha, beta, factor * gamma)):
        slower = seconds_of_all(dataclasses.replace(case, link=worse))
        for name, seconds in seconds_of_all(case).items():
            assert slower[name] >= seconds * (1 - 1e-9), name


def test_goyal_et_al():
    """256 GPUs, 8 a server, 50 Gbit/s, 100 MB, 120 ms of backward pass: see benchmarks/simulate_goyal.py for the whole of it."""
    link = link_of(bandwidth_bytes_per_s=6.25e9, latency_s=50e-6)
    case = Case(256, link, 100e6, 0.18, workers_per_host=8, spread=0.05)
    assert 0.87 < dataclasses.replace(case, workers=8).slowest_s / seconds_per_update("halving_doubling", case) < 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers = 0: must be 1 or more; give how many there are"),
        ({"model_bytes": 0}, "model_bytes = 0: must be a finite number above zero"),
        ({"step_s": math.nan}, "step_s = nan: must be a finite number above zero"),
        ({"backward_share": 1.5}, "backward_share = 1.5: must lie from 0 to 1"),
        ({"spread": -0.1}, "spread = -0.1: must be zero or above; give standard deviation over mean, such as 0.05"),
        ({"compress_s": math.inf}, "compress_s = inf: must be zero or above; give what compressing takes"),
        ({"top_k_share": 2.0}, "top_k_share = 2.0: must lie from 0 to 1"),
        ({"all_reduce": "rings"}, "unknown all-reduce 'rings': did you mean 'ring'"),
    ],
)
def test_refuses_a_case(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CASE, **change)


def test_refuses_a_strategy():
    with pytest.raises(UserError, match="unknown strategy 'ring_allreduce': did you mean 'ring_all_reduce'"):
        seconds_per_update("ring_allreduce", CASE)
    with pytest.raises(UserError, match="random_match of 5 hosts: one would be left over; give an even number, or choose a ring"):
        seconds_per_update("gossip_random_match", dataclasses.replace(CASE, workers=5))
