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
from bigbatch.simulate.seconds import overlapped_all_reduce_s
from bigbatch.simulate.straggler import expected_largest
from bigbatch.simulate.strategies import STRATEGIES, UpdateCost, all_stop, cost_of_all, seconds_of_all, seconds_per_update, update_cost

CASE = Case(
    workers=4,
    link=Link(0.5, 0.25, 0.125),
    model_bytes=8,
    step_s=3.0,
    bucket_bytes=4,
    local_steps=5,
    servers=2,
    outer_period=10,
    fragments=2,
    overlap_updates=1,
)
GLOO_S = 3 * 0.875 + 0.375 + 3 * 0.75 + 0.25  # gloo's ring of 8 bytes, faster than halving and doubling: 3 pairs and one wire in each phase
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
    # 1 % of 8 bytes, twice: 2 rounds, 3 pieces
    "top_k": 3 + 2 * 0.5 + 3 * 0.16 * 0.375,
    "one_bucket": 3 + GLOO_S,
    "local_sgd": 3 + GLOO_S / 5,
    "diloco": 3 + GLOO_S / 10,
    # 2 values and 2/256 of a scale: there at once, with additions of 8 bytes; back in 2 rounds
    "diloco_int8": 3 + (0.5 + 0.75 * (2.03125 * 0.25 + 8 * 0.125) + 2 * 0.5 + 0.75 * 2.03125 * 0.25) / 10,
    "diloco_int4": 3 + (0.5 + 0.75 * (1.03125 * 0.25 + 8 * 0.125) + 2 * 0.5 + 0.75 * 1.03125 * 0.25) / 10,
    # a chunk is 120 bytes
    "sparse_loco": 3 + (2 * 0.5 + 3 * 120 * 0.375) / 10,
    # halving and doubling of 4 bytes takes 3.875 s, an update of 3 s hides most of it; a fragment leaves every 5 updates
    "streaming_diloco": 3 + 0.875 / 5,
    # below 3 s
    "streaming_diloco_int4": 3.0,
    # 16 bytes
    "noloco": 3 + (0.5 + 16 * 0.375) / 10,
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
SENT = {  # bytes of 8; 3/4 twice for a sum
    **dict.fromkeys(["ring_all_reduce", "gloo_ring", "halving_doubling", "tree", "one_bucket"], 12.0),
    "fp16": 6.0,
    "powersgd": 12 / 72,
    "top_k": 3 * 0.16,
    "local_sgd": 12 / 5,
    "diloco": 1.2,
    "diloco_int8": 1.5 * 2.03125 / 10,
    "diloco_int4": 1.5 * 1.03125 / 10,
    "sparse_loco": 3 * 120 / 10,
    "streaming_diloco": 1.2,
    "streaming_diloco_int4": 1.5 * 1.03125 / 10,
    "noloco": 1.6,
    "parameter_server": 8.0,
    "asynchronous_server": 8.0,
    **{f"gossip_{name}": 8.0 for name in ("one_peer_exponential", "random_match")},
    **{f"gossip_{name}": 16.0 for name in ("ring", "torus", "exponential")},
    **{f"gossip_{name}": 24.0 for name in ("complete", "symmetric_exponential")},
    "gossip_star": 12.0,  # 3 from the centre, one from each of 3
}
OUTER = {name for name in STRATEGIES if "loco" in name}
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
    outer_period=st.integers(1, 100),
    fragments=st.integers(1, 20),
    overlap_updates=st.integers(0, 40),
    host_link=st.none() | st.builds(Link, st.floats(0, 0.01), st.floats(1e-12, 1e-8), st.just(0.0)),
)


@pytest.mark.parametrize("strategy", BY_HAND)
def test_hand_worked(strategy):
    assert update_cost(strategy, CASE) == pytest.approx(UpdateCost(BY_HAND[strategy], SENT[strategy], 1.0))


def test_all_of_them():
    assert seconds_of_all(CASE) == pytest.approx(BY_HAND)
    assert set(STRATEGIES) - set(BY_HAND) == {"hierarchical_diloco"}
    assert "hierarchical_diloco" in seconds_of_all(dataclasses.replace(CASE, workers_per_host=2))
    assert set(seconds_of_all(dataclasses.replace(CASE, workers=5))) == set(BY_HAND) - {"gossip_random_match"}
    assert {name for name, each in STRATEGIES.items() if each.exact} == {
        *("ring_all_reduce", "gloo_ring", "halving_doubling", "tree", "one_bucket", "parameter_server")
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


def test_waiting_for_an_outer_step():
    """10 %: DiLoCo waits for all every 10 updates; NoLoCo for a peer; a fragment's exchange lets nobody be more than an update behind."""
    case, largest = dataclasses.replace(CASE, spread=0.1, link=Link(0.0, 1e-12)), expected_largest(4)
    for name in ("diloco", "diloco_int8", "diloco_int4", "sparse_loco"):
        assert seconds_per_update(name, case) == pytest.approx(3 * (1 + 0.1 * largest / math.sqrt(10))), name
    assert seconds_per_update("noloco", case) == pytest.approx(3 * (1 + 0.1 * min(math.sqrt(2 * math.log(2)), largest) / math.sqrt(10)))
    most = max((0.1 * largest * math.sqrt(5 * m - 1) - 1) / (5 * m) for m in range(1, 200))
    assert most > 0
    assert seconds_per_update("streaming_diloco", case) == pytest.approx(3 * (1 + most))


def test_hierarchical_diloco():
    """2 hosts of 2 workers: inside, 2 buckets of 4 bytes take 0.75 s each, the second after 3 s; between, 8 bytes every 10 updates."""
    case = dataclasses.replace(CASE, workers_per_host=2, host_link=Link(0.125, 0.125))
    between_s = min(all_reduce(name, CASE.link, 2, 8).seconds(8) for name in ALL_REDUCES)
    assert seconds_per_update("hierarchical_diloco", case) == pytest.approx(3.75 + between_s / 10)
    assert update_cost("hierarchical_diloco", case).sent_bytes == 8 / 10
    slow = dataclasses.replace(case, spread=0.1, link=Link(0.0, 1e-12), host_link=None)
    among, over = 1 / math.sqrt(math.pi), math.sqrt(1 - 1 / math.pi) / math.sqrt(math.pi) / math.sqrt(10)
    assert seconds_per_update("hierarchical_diloco", slow) == pytest.approx(3 * (1 + 0.1 * (among + over)))


def test_a_link_inside_hosts_counts_in_every_way():
    """All 8 bytes among 2 workers: 0.25 + 1 s; of buckets, 4 bytes each; DiLoCo every 10 updates, fragments of 4 bytes every 5."""
    free = dataclasses.replace(CASE, workers_per_host=2, overlap=False)
    costs, more = cost_of_all(free), cost_of_all(dataclasses.replace(free, host_link=Link(0.125, 0.125)))
    for name in ("one_bucket", "top_k", "parameter_server", "gossip_ring"):
        assert more[name].seconds - costs[name].seconds == pytest.approx(1.25), name
    for name in ("diloco", "diloco_int4", "sparse_loco", "noloco"):
        assert more[name].seconds - costs[name].seconds == pytest.approx(0.125), name
    assert more["ring_all_reduce"].seconds - costs["ring_all_reduce"].seconds == pytest.approx(2 * 0.75)
    assert {name: cost.sent_bytes for name, cost in more.items()} == {name: cost.sent_bytes for name, cost in costs.items()}


def test_compressing_takes_its_time_once_in_a_period():
    case = dataclasses.replace(CASE, compress_s=2.0)
    for name, share in (("powersgd", 1.0), ("diloco_int4", 0.1), ("sparse_loco", 0.1), ("diloco", 0.0), ("noloco", 0.0)):
        assert seconds_per_update(name, case) - seconds_per_update(name, CASE) == pytest.approx(2.0 * share), name


def test_losses():
    """M = 1 h, R = 60 s. Who stops all; who is left out (of 5, of 10 updates; of a fragment's 5); who is alone."""
    case = dataclasses.replace(CASE, lost_every_s=3600.0)
    costs = cost_of_all(case)
    for name, by_hand in BY_HAND.items():
        losses = by_hand / 3600
        own = losses / (61 / 60 * (math.exp(losses) - 1))
        expected = 4 * losses / (64 / 60 * (math.exp(4 * losses) - 1))
        if name == "asynchronous_server" or name.startswith("gossip_"):
            expected = own
        elif name == "noloco":
            expected = 10 * losses / (61 / 60 * (math.exp(10 * losses) - 1))
        elif name == "local_sgd" or name in OUTER:
            period = 5 if name == "local_sgd" else 10
            exchange_s = by_hand * (5 if "streaming" in name else period)
            kept = exchange_s / (exchange_s + 60 * (1 - math.exp(-4 * exchange_s / 3600)))
            expected = math.exp(-period * losses) * kept
        assert costs[name] == pytest.approx(UpdateCost(by_hand / expected, SENT[name], expected)), name


def test_losses_of_a_host_of_several():
    """2 hosts of 2: a loss takes the host's period, and any of 4 makes the other wait; in gossip a host is lost twice as often."""
    case = dataclasses.replace(CASE, workers_per_host=2, lost_every_s=3600.0)
    cost, alone = (
        update_cost("hierarchical_diloco", case),
        seconds_per_update("hierarchical_diloco", dataclasses.replace(case, lost_every_s=None)),
    )
    kept = 10 * alone / (10 * alone + 60 * (1 - math.exp(-40 * alone / 3600)))
    assert cost.goodput == pytest.approx(math.exp(-2 * 10 * alone / 3600) * kept)
    losses = 2 * seconds_per_update("gossip_ring", dataclasses.replace(case, lost_every_s=None)) / 3600
    assert update_cost("gossip_ring", case).goodput == pytest.approx(losses / ((1 + 120 / 3600) * (math.exp(losses) - 1)))


def test_an_update_that_never_ends_between_two_losses():
    case = dataclasses.replace(CASE, workers=4096, lost_every_s=3600.0)
    cost = update_cost("ring_all_reduce", case)
    assert (cost.seconds, cost.goodput) == (math.inf, 0.0)
    assert math.isfinite(seconds_per_update("diloco", case))
    with pytest.raises(UserError, match="lost_every_s = None: no worker is lost, all of the time counts"):
        all_stop(CASE, 1.0)


def test_four_thousand_workers_at_100_ms():
    """2 GB on 1 Gbit/s: a ring's latency is 819 s, that of halving and doubling 2.4; each moves 2 GB twice, in 32 s."""
    case = Case(4096, link_of(bandwidth_bytes_per_s=125e6, latency_s=0.1), 2e9, 1.0)
    wire_s = 2 * 4095 / 4096 * 16
    assert all_reduce("ring", case.link, 4096, 2e9).seconds(2e9) == pytest.approx(819 + wire_s)
    assert seconds_per_update("one_bucket", case) == pytest.approx(1 + 2.4 + wire_s)
    assert seconds_per_update("diloco", case) == pytest.approx(1 + (2.4 + wire_s) / 30)
    assert seconds_per_update("diloco_int4", case) == pytest.approx(1 + (0.1 + 1.2 + wire_s * (1 / 8 + 1 / 256)) / 30)
    assert seconds_per_update("noloco", case) == pytest.approx(1 + (0.1 + 32) / 30)
    sparse_s = 1.2 + 4095 * math.ceil(5e8 / 4096) * 120 / 125e6  # each payload is small, but there are 4,095
    assert seconds_per_update("sparse_loco", case) == pytest.approx(1 + sparse_s / 30)
    rings = dataclasses.replace(case, all_reduce="ring")
    assert seconds_per_update("diloco_int4", rings) == pytest.approx(1 + (0.1 + 409.5 + wire_s * (1 / 8 + 1 / 256)) / 30)


@given(cases, st.floats(1e3, 1e9), st.floats(0, 1e4))
def test_losses_never_help(case, lost_every_s, recovery_s):
    lossy = cost_of_all(dataclasses.replace(case, lost_every_s=lost_every_s, recovery_s=recovery_s))
    for name, cost in cost_of_all(case).items():
        assert lossy[name].seconds >= cost.seconds * (1 - 1e-9), name
        assert 0 <= lossy[name].goodput <= 1 + 1e-9
        assert lossy[name].sent_bytes == cost.sent_bytes


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
        if "server" not in name and name not in {"local_sgd", *OUTER} and case.host_link is None:
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
        ({"outer_period": 0}, "outer_period = 0: must be 1 or more; give how many there are"),
        ({"fragments": 0}, "fragments = 0: must be 1 or more"),
        ({"overlap_updates": -1}, "overlap_updates = -1: must be 0 or more; 0 waits for each exchange"),
        ({"lost_every_s": 0.0}, "lost_every_s = 0.0: must be a finite number above zero"),
        ({"recovery_s": -1.0}, "recovery_s = -1.0: must be zero or above; give the seconds from a loss until work goes on"),
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
    with pytest.raises(UserError, match="workers_per_host = 1: hierarchical_diloco needs 2 or more; give how many share a host"):
        seconds_per_update("hierarchical_diloco", CASE)
    with pytest.raises(UserError, match="random_match of 5 hosts: one would be left over; give an even number, or choose a ring"):
        seconds_per_update("gossip_random_match", dataclasses.replace(CASE, workers=5))
