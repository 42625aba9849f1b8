import math

import networkx
import numpy as np
import pytest

from bigbatch.comm.gossip.topology import (
    TOPOLOGIES,
    Topology,
    check_connected,
    check_doubly_stochastic,
    complete,
    exponential,
    from_graph,
    from_weights,
    metropolis,
    one_peer_exponential,
    random_match,
    ring,
    spectral_gap,
    star,
    topology,
    torus,
)
from bigbatch.core.checks import UserError

SIZES = range(2, 65)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_matrix_is_what_it_claims_to_be(name):
    for n in SIZES:
        if name == "random_match" and n % 2:
            continue
        graph = topology(name, n)
        assert (graph.name, graph.num_workers) == (name, n)
        product = np.eye(n)
        for update in range(graph.period or 64):
            W = graph.weights(update)
            check_doubly_stochastic(W)
            assert (W.diagonal() > 0).all()
            if graph.symmetric:
                assert np.array_equal(W, W.T)
            if graph.period is not None:
                assert np.array_equal(W, graph.weights(update + graph.period))
            product = W @ product
        assert spectral_gap(product) > 0, f"{name} of {n}: some never hear of others"


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_whom_one_hears_is_who_sends(name):
    for n in (2, 6, 8, 16):
        graph = topology(name, n)
        for update in range(3):
            received = {(j, i) for i in range(n) for j in graph.neighbours(i, update)[0]}
            sent = {(i, j) for i in range(n) for j in graph.neighbours(i, update)[1]}
            assert received == sent


def test_hand_worked():
    assert ring(4).weights(0) * 3 == pytest.approx(np.array([[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]))
    assert star(3).weights(0) * 3 == pytest.approx(np.array([[1, 1, 1], [1, 2, 0], [1, 0, 2]]))
    assert complete(3).weights(0) * 3 == pytest.approx(np.ones((3, 3)))
    assert exponential(4).weights(0) * 3 == pytest.approx(np.array([[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1]]))
    assert ring(8).neighbours(0, 0) == ([1, 7], [1, 7])
    assert one_peer_exponential(8).neighbours(0, 1) == ([6], [2])
    assert torus(12).neighbours(0, 0)[0] == [1, 3, 4, 8]


def test_gaps_that_are_known():
    for n in (4, 8, 32):
        assert spectral_gap(ring(n).weights(0)) == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / n)) / 3)
    assert spectral_gap(complete(5).weights(0)) == pytest.approx(1)
    assert spectral_gap(np.eye(4)) == pytest.approx(0)


@pytest.mark.parametrize("n", [2, 4, 8, 64])
def test_one_peer_reaches_the_mean_in_log2_of_a_power_of_two(n):
    graph, W = one_peer_exponential(n), np.eye(n)
    for update in range(round(math.log2(n))):
        W = graph.weights(update) @ W
    assert pytest.approx(np.full((n, n), 1 / n)) == W


def test_matches_are_pairs_the_same_everywhere_and_new_in_every_update():
    one, other = random_match(8, seed=3), random_match(8, seed=3)
    drawn = [one.neighbours(0, update) for update in range(30)]
    assert drawn == [other.neighbours(0, update) for update in range(30)]
    assert {receives[0] for receives, _ in drawn} == set(range(1, 8))
    assert all(len(receives) == 1 and receives == sends for receives, sends in drawn)
    with pytest.raises(UserError, match="random_match of 7 workers: must be an even number, to form pairs; start one more"):
        random_match(7)


def test_any_graph():
    path = from_graph(networkx.path_graph(3))
    assert path.weights(0) * 3 == pytest.approx(np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]))
    with pytest.raises(UserError, match="worker 2 can't be reached from worker 0: must be connected"):
        from_graph(networkx.Graph([(0, 1), (2, 3)]))
    with pytest.raises(UserError, match="graph: is directed"):
        from_graph(networkx.DiGraph([(0, 1), (1, 2)]))
    with pytest.raises(UserError, match="must be the workers 0 to n - 1"):
        from_graph(networkx.Graph([(1, 2)]))


@pytest.mark.parametrize(
    ("W", "message"),
    [
        ([[1.0, 0.0]], r"have shape \(1, 2\): must be a square matrix"),
        ([[1.5, -0.5], [-0.5, 1.5]], "must be finite and not negative"),
        ([[0.6, 0.5], [0.4, 0.5]], "row 0 sums to 1.1"),
        ([[0.5, 0.5], [0.4, 0.6]], "column 0 sums to 0.9"),
    ],
)
def test_weights_that_would_not_keep_the_mean(W, message):
    with pytest.raises(UserError, match=message):
        check_doubly_stochastic(np.array(W))


def test_weights_of_your_own():
    cycle = [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]]
    assert not from_weights(np.array(cycle)).symmetric
    own = from_weights(np.array([[0.75, 0.25], [0.25, 0.75]]), name="mine")
    assert (own.name, own.num_workers, own.period, own.symmetric) == ("mine", 2, 1, True)
    assert own.weights(3).tolist() == [[0.75, 0.25], [0.25, 0.75]]
    with pytest.raises(UserError, match="topology weights: worker 1 can't be reached from worker 0: must be connected"):
        from_weights(np.eye(2))
    with pytest.raises(UserError, match="workers only swap their values and never average: give each worker a weight for its own value"):
        from_weights(np.array([[0.0, 1.0], [1.0, 0.0]]))
    with pytest.raises(UserError, match="row 0 sums to 1.1"):
        from_weights(np.array([[0.6, 0.5], [0.4, 0.5]]))


def test_a_graph_that_changes_must_reach_all_over_its_cycle():
    half = np.full((2, 2), 0.5)
    pairs = [np.kron(np.eye(2), half), np.kron(half, np.eye(2))]  # 0-1 and 2-3, then 0-2 and 1-3
    check_connected(Topology("in turn", 4, lambda update: pairs[update % 2], period=2))
    with pytest.raises(UserError, match="topology stuck: worker 2 can't be reached from worker 0"):
        check_connected(Topology("stuck", 4, lambda update: pairs[0], period=2))


def test_names_and_numbers():
    with pytest.raises(UserError, match="unknown topology 'rign': did you mean 'ring'"):
        topology("rign", 4)
    for name in TOPOLOGIES:
        with pytest.raises(UserError, match="1 workers: must be at least 2; start more"):
            topology(name, 1)
    assert metropolis(np.array([[0.0, 1.0], [1.0, 0.0]])).tolist() == [[0.5, 0.5], [0.5, 0.5]]
