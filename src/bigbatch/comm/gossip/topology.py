"""Topologies: graphs of workers as doubly stochastic mixing matrices, which preserve the mean over workers.

    W[i, j] is the weight that worker i gives to the values of worker j; rows sum to 1, and so do columns.

With a connected graph, all workers converge to the mean at the rate of the spectral gap: the distance shrinks by 1 - gap an update.
Ring, torus, complete, star, symmetric exponential and random match are symmetric, as the theory of D-PSGD and DecentLaM requires; the
exponential graphs of Ying et al. 2021 (arXiv:2110.13363) are directed, and the one-peer graph changes with every update.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigbatch.core.checks import UserError, unknown

Matrix = NDArray[np.float64]
TOLERANCE = 1e-9


class Topology(NamedTuple):
    """A graph of `num_workers` workers, which may change from update to update."""

    name: str
    num_workers: int
    weights: Callable[[int], Matrix]  # number of the update to W, shape (num_workers, num_workers)
    period: int | None = 1  # updates after which it repeats; None if it never does
    symmetric: bool = True  # whether every W is symmetric

    def neighbours(self, worker: int, update: int) -> tuple[list[int], list[int]]:
        """The workers from which a worker receives in an update, and those to which it sends, ascending."""
        W = self.weights(update)
        receives = [j for j in range(self.num_workers) if j != worker and W[worker, j] > 0]
        return receives, [j for j in range(self.num_workers) if j != worker and W[j, worker] > 0]


def spectral_gap(W: Matrix) -> float:
    """1 - the second largest modulus of an eigenvalue: 1 if one update reaches the mean, 0 if it is never reached.

    >>> round(1 - spectral_gap(ring(8).weights(0)), 3)  # (1 + 2 cos(2 pi / 8)) / 3
    0.805
    """
    moduli = np.sort(np.abs(np.linalg.eigvals(W)))
    return float(1 - moduli[-2]) if len(moduli) > 1 else 1.0


def check_doubly_stochastic(W: Matrix) -> None:
    """Check that weights preserve the mean.

    Raises:
        UserError: If W is not doubly stochastic, with the reason.

    >>> check_doubly_stochastic(np.array([[0.5, 0.5], [0.4, 0.6]]))
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: weights: column 0 sums to 0.9: must sum to 1, or the mean of all workers drifts; use Metropolis weights
    """
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise UserError(f"weights: have shape {W.shape}: must be a square matrix, one row per worker")
    if not np.isfinite(W).all() or (W < -TOLERANCE).any():
        raise UserError("weights: must be finite and not negative; use Metropolis weights")
    for kind, sums in (("row", W.sum(axis=1)), ("column", W.sum(axis=0))):
        wrong = np.flatnonzero(np.abs(sums - 1) > TOLERANCE)
        if len(wrong):
            raise UserError(
                f"weights: {kind} {wrong[0]} sums to {sums[wrong[0]]:.6g}: must sum to 1, or the mean of all workers drifts; "
                "use Metropolis weights"
            )


def check_connected(topology: Topology) -> None:
    """Check that workers converge to their mean; a topology that never repeats is not checked.

    Raises:
        UserError: If the graph is not connected, or the values oscillate.
    """
    if topology.period is None:
        return
    cycle = np.linalg.multi_dot([topology.weights(u) for u in range(topology.period)]) if topology.period > 1 else topology.weights(0)
    unreachable = _unreachable((cycle + cycle.T > TOLERANCE) & ~np.eye(topology.num_workers, dtype=bool))
    if unreachable:
        raise UserError(f"topology {topology.name}: worker {unreachable[0]} can't be reached from worker 0: must be connected; add edges")
    if spectral_gap(cycle) < TOLERANCE:
        raise UserError(
            f"topology {topology.name}: workers only swap their values and never average: give each worker a weight for its own value, "
            "such as by Metropolis weights"
        )


def metropolis(adjacency: Matrix) -> Matrix:
    """Metropolis-Hastings weights of an undirected graph: 1 / (1 + the larger degree) for each edge, the rest on the diagonal.

    Args:
        adjacency: Shape (n, n), symmetric, 1 for an edge; the diagonal is ignored.

    Returns:
        Symmetric and doubly stochastic, with a positive diagonal.

    Raises:
        UserError: If the graph is directed or not connected.

    >>> metropolis(np.array([[0.0, 1.0], [1.0, 0.0]]))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    edges = (np.asarray(adjacency, dtype=float) > 0) & ~np.eye(len(adjacency), dtype=bool)
    if not np.array_equal(edges, edges.T):
        raise UserError("graph: is directed: must be undirected; give an undirected graph, or use an exponential topology")
    unreachable = _unreachable(edges)
    if unreachable:
        raise UserError(f"graph: worker {unreachable[0]} can't be reached from worker 0: must be connected; add edges")
    degrees = edges.sum(axis=1)
    W = np.where(edges, 1 / (1 + np.maximum(degrees[:, None], degrees[None, :])), 0.0)
    return W + np.diag(1 - W.sum(axis=1))


def ring(num_workers: int) -> Topology:
    """Each worker has two neighbours; all weights are 1/3."""
    return _static("ring", num_workers, [(i, (i + 1) % num_workers) for i in range(_at_least_two("ring", num_workers))])


def torus(num_workers: int) -> Topology:
    """A grid, as square as possible, with wrap-around: up to four neighbours each. With a prime number of workers it is a ring."""
    _at_least_two("torus", num_workers)
    rows = next(r for r in range(math.isqrt(num_workers), 0, -1) if num_workers % r == 0)
    columns = num_workers // rows
    right = [(i, i // columns * columns + (i + 1) % columns) for i in range(num_workers)]
    down = [(i, (i + columns) % num_workers) for i in range(num_workers)]
    return _static("torus", num_workers, [*right, *down])


def complete(num_workers: int) -> Topology:
    """All workers are neighbours: one update reaches the mean."""
    _at_least_two("complete", num_workers)
    return _static("complete", num_workers, [(i, j) for i in range(num_workers) for j in range(i)])


def star(num_workers: int) -> Topology:
    """Worker 0 is the only neighbour of all others."""
    return _static("star", num_workers, [(0, i) for i in range(1, _at_least_two("star", num_workers))])


def symmetric_exponential(num_workers: int) -> Topology:
    """The neighbours of a worker are 1, 2, 4, ... places away, on both sides."""
    _at_least_two("symmetric_exponential", num_workers)
    return _static(
        "symmetric_exponential", num_workers, [(i, (i + hop) % num_workers) for i in range(num_workers) for hop in _hops(num_workers)]
    )


def exponential(num_workers: int) -> Topology:
    """Each worker receives from those 1, 2, 4, ... places behind it, with equal weights; directed."""
    n = _at_least_two("exponential", num_workers)
    hops = _hops(n)
    W = sum((_shift(n, hop) for hop in hops), np.eye(n)) / (len(hops) + 1)
    return Topology("exponential", n, lambda update: W, symmetric=False)  # noqa: ARG005


def one_peer_exponential(num_workers: int) -> Topology:
    """Each worker receives from one other, 1, 2, 4, ... places behind in turn, at weight 1/2. Powers of two reach the mean in a cycle."""
    n = _at_least_two("one_peer_exponential", num_workers)
    cycle = [(np.eye(n) + _shift(n, hop)) / 2 for hop in _hops(n)]
    return Topology("one_peer_exponential", n, lambda update: cycle[update % len(cycle)], period=len(cycle), symmetric=False)


def random_match(num_workers: int, seed: int = 0) -> Topology:
    """Random pairs, drawn anew for every update and the same on every worker, with weight 1/2.

    Raises:
        UserError: If the number of workers is odd.
    """
    n = _at_least_two("random_match", num_workers)
    if n % 2:
        raise UserError(f"random_match of {n} workers: must be an even number, to form pairs; start one more, or use a ring")

    def weights(update: int) -> Matrix:
        order = np.random.default_rng([seed, update]).permutation(n)
        W = np.eye(n) / 2
        W[order[0::2], order[1::2]] = W[order[1::2], order[0::2]] = 0.5
        return W

    return Topology("random_match", n, weights, period=None)


def from_graph(graph: Any) -> Topology:
    """Any undirected networkx graph whose nodes are the workers 0 to n - 1, with Metropolis weights.

    Raises:
        UserError: If its nodes are not 0 to n - 1, or the graph is directed or not connected.
    """
    nodes = sorted(graph.nodes)
    if nodes != list(range(len(nodes))):
        raise UserError(f"graph: its nodes are {nodes[:5]}...: must be the workers 0 to n - 1; relabel them")
    adjacency = np.zeros((len(nodes), len(nodes)))
    for i, j in graph.edges:
        adjacency[i, j] = 1.0
        if not graph.is_directed():
            adjacency[j, i] = 1.0
    W = metropolis(adjacency)
    return Topology("graph", len(nodes), lambda update: W)  # noqa: ARG005


def from_weights(W: Matrix, name: str = "weights") -> Topology:
    """Your own mixing weights, the same in every update.

    Args:
        W: Shape (n, n), doubly stochastic and connected.
        name: Name for error messages.

    Raises:
        UserError: If they are not doubly stochastic and connected.
    """
    W = np.asarray(W, dtype=float)
    check_doubly_stochastic(W)
    made = Topology(name, len(W), lambda update: W, symmetric=bool(np.allclose(W, W.T, rtol=0, atol=TOLERANCE)))  # noqa: ARG005
    check_connected(made)
    return made


TOPOLOGIES: dict[str, Callable[[int], Topology]] = {
    "ring": ring,
    "torus": torus,
    "complete": complete,
    "star": star,
    "exponential": exponential,
    "one_peer_exponential": one_peer_exponential,
    "symmetric_exponential": symmetric_exponential,
    "random_match": random_match,
}


def topology(name: str, num_workers: int) -> Topology:
    """The topology of a given name.

    Raises:
        UserError: If there is no such topology, or it is not possible with that number of workers.
    """
    if name not in TOPOLOGIES:
        raise UserError(unknown("topology", name, TOPOLOGIES))
    return TOPOLOGIES[name](num_workers)


def _static(name: str, num_workers: int, edges: Iterable[tuple[int, int]]) -> Topology:
    adjacency = np.zeros((num_workers, num_workers))
    for i, j in edges:
        adjacency[i, j] = adjacency[j, i] = 1.0
    W = metropolis(adjacency)
    return Topology(name, num_workers, lambda update: W)  # noqa: ARG005


def _at_least_two(name: str, num_workers: int) -> int:
    if num_workers < 2:
        raise UserError(f"{name} of {num_workers} workers: must be at least 2; start more")
    return num_workers


def _hops(num_workers: int) -> list[int]:
    """1, 2, 4, ... below the number of workers."""
    return [1 << i for i in range((num_workers - 1).bit_length())]


def _shift(num_workers: int, hop: int) -> Matrix:
    """Each worker receives from the one `hop` places behind."""
    return np.roll(np.eye(num_workers), -hop, axis=1)


def _unreachable(edges: NDArray[np.bool_]) -> list[int]:
    found, new = {0}, [0]
    while new:
        new = [j for i in new for j in np.flatnonzero(edges[i]).tolist() if j not in found]
        found.update(new)
    return [i for i in range(len(edges)) if i not in found]
