import pytest

from bigbatch.comm.gossip.topology import TOPOLOGIES, topology
from bigbatch.core.checks import UserError
from bigbatch.simulate.gossip import DEGREES, degree, exchange_s, mean_degree
from bigbatch.simulate.link import Link


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_degrees_are_those_of_the_topologies(name):
    """Whichever is more, of messages in and out, of the busiest worker in the busiest update."""
    for n in range(2, 34):
        if name == "random_match" and n % 2:
            continue
        graph = topology(name, n)
        counts = [len(side) for update in range(graph.period or 3) for i in range(n) for side in graph.neighbours(i, update)]
        assert degree(name, n) == max(counts), n
        sent = [len(graph.neighbours(i, update)[0]) for update in range(graph.period or 3) for i in range(n)]
        assert mean_degree(name, n) == pytest.approx(sum(sent) / len(sent)), n


def test_all_topologies_are_known():
    assert set(DEGREES) == set(TOPOLOGIES)


@pytest.mark.parametrize("name", DEGREES)
def test_one_host_is_alone(name):
    assert degree(name, 1) == 0
    assert exchange_s(Link(1.0, 1.0), 8, degree(name, 1)) == 0.0


def test_hand_worked():
    """Two messages of 8 bytes leave one after the other, a quarter of a second a byte, and an eighth to add it."""
    assert exchange_s(Link(0.5, 0.25, 0.125), 8, degree=2) == 0.5 + 2 * 8 * 0.375


def test_refuses():
    with pytest.raises(UserError, match="unknown topology 'rings': did you mean 'ring'"):
        degree("rings", 4)
    with pytest.raises(UserError, match="hosts = 0: must be 1 or more"):
        degree("ring", 0)
