import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.all_reduce import ALL_REDUCES, CLOSED_FORMS, FREE, all_reduce, crossing_bytes, halving_doubling, ring, tree
from bigbatch.simulate.link import Link

LINK = Link(alpha_s=1.0, beta_s_per_byte=0.25, gamma_s_per_byte=0.125)
links = st.builds(Link, st.floats(0, 1e-1), st.floats(1e-12, 1e-6), st.floats(0, 1e-6))


def test_ring_hand_worked():
    """4 hosts: 6 messages of b/4, and 3/4 b added."""
    assert ring(LINK, 4)[:2] == (6.0, 6 / 4 * 0.25 + 3 / 4 * 0.125)


def test_halving_doubling_hand_worked():
    """4 hosts: exchanges of b/2, b/4 (added), then b/4, b/2: 4 messages, 6/4 b in all, 3/4 b added."""
    assert halving_doubling(LINK, 4)[:2] == (4.0, 6 / 4 * 0.25 + 3 / 4 * 0.125)


def test_halving_doubling_of_six_hands_two_over_first():
    """As of 4, a message of b that is added before, and one of b after."""
    assert halving_doubling(LINK, 6)[:2] == (4.0 + 2, (6 / 4 + 2) * 0.25 + (3 / 4 + 1) * 0.125)


def test_tree_hand_worked():
    """8 hosts are 3 deep: 3 messages of b that are added, 3 back. 5 hosts are as deep."""
    assert tree(LINK, 8)[:2] == tree(LINK, 5)[:2] == (6.0, 6 * 0.25 + 3 * 0.125)


@given(links, st.integers(0, 12))
def test_ring_and_halving_doubling_move_the_same_bytes(link, power):
    hosts = 1 << power
    assert ring(link, hosts).beta_s_per_byte == pytest.approx(halving_doubling(link, hosts).beta_s_per_byte)


@given(links, st.integers(1, 5000), st.floats(1, 1e10))
def test_no_all_reduce_beats_what_must_be_sent(link, hosts, num_bytes):
    """Every host sends its own, and receives the others': 2 (n - 1)/n b at least; and news travels lg n hops."""
    least = 2 * (hosts - 1) / hosts * num_bytes * link.beta_s_per_byte
    for name in ALL_REDUCES:
        assert all_reduce(name, link, hosts, num_bytes).seconds(num_bytes) >= least * (1 - 1e-9)
        assert all_reduce(name, link, hosts, num_bytes).seconds(num_bytes) >= (hosts - 1).bit_length() * link.alpha_s
    fastest = all_reduce("fastest", link, hosts, num_bytes).seconds(num_bytes)
    assert fastest == min(all_reduce(name, link, hosts, num_bytes).seconds(num_bytes) for name in ALL_REDUCES)


@given(links, st.integers(2, 5000))
def test_the_crossing_is_where_both_take_as_long(link, hosts):
    size = crossing_bytes(link, hosts)
    if 0 < size < math.inf:
        assert ring(link, hosts).seconds(size) == pytest.approx(halving_doubling(link, hosts).seconds(size))
    for other in (size / 2, 2 * size if size else 1.0):
        if other and other < math.inf:
            one, two = ring(link, hosts).seconds(other), halving_doubling(link, hosts).seconds(other)
            assert (two <= one * (1 + 1e-9)) == (other <= size) or one == pytest.approx(two)


def test_crossing_hand_worked():
    """6 hosts: (10 - 6) 1 s saved; (3.5 - 10/6) 0.25 + (1.75 - 5/6) 0.125 s a byte lost. Of 8 nothing is lost, of 3 and 2 nothing saved."""
    assert crossing_bytes(LINK, 6) == pytest.approx(4 / ((3.5 - 10 / 6) * 0.25 + (1.75 - 5 / 6) * 0.125))
    assert crossing_bytes(LINK, 8) == math.inf
    assert crossing_bytes(LINK, 3) == 0.0
    assert crossing_bytes(LINK, 2) == 0.0


def test_one_host_exchanges_nothing():
    assert {all_reduce(name, LINK, 1, 8.0) for name in ALL_REDUCES} == {FREE}


@pytest.mark.parametrize("name", ALL_REDUCES)
def test_refuses_no_host(name):
    with pytest.raises(UserError, match="hosts = 0: must be 1 or more; one exchanges nothing"):
        all_reduce(name, LINK, 0, 1.0)
    for cost in CLOSED_FORMS.values():
        with pytest.raises(UserError, match="hosts = 0"):
            cost(LINK, 0)


def test_refuses_another_name():
    with pytest.raises(UserError, match="unknown all-reduce 'rings': did you mean 'ring'\\? known: ring, halving_doubling, "):
        all_reduce("rings", LINK, 2, 1.0)
