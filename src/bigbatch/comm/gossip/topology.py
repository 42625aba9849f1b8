"""Who talks to whom: graphs of workers as matrices of weights, doubly stochastic, so that what they average towards is the mean of all.

    W[i, j] is the weight that worker i gives to what worker j has; rows sum to 1, and so do columns.

A matrix of a connected graph brings all workers to the mean at the rate of its spectral gap: the distance shrinks by 1 - gap an update.
Ring, torus, complete, star, symmetric exponential and random match are symmetric, as the theory of D-PSGD and DecentLaM asks; the
exponential graphs of Ying et al. 2021 (arXiv:2110.13363) are directed, and the one-peer form changes with every update.
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
    period: int | None = 1  # updates after which it repeats; None: never
    symmetric: bool = True  # whether every W is

    def neighbours(self, worker: int, update: int) -> tuple[list[int], list[int]]:
        """Whom a worker receives from, and whom it sends to, in an update; in ascending order."""
        W = self.weights(update)
        receives = [j for j in range(self.num_workers) if j != worker and W[worker, j] > 0]
        return receives, [j for j in range(self.num_workers) if j != worker and W[j, worker] > 0]


def spectral_gap(W: Matrix) -> float:
    """1 - the second largest modulus of an eigenvalue: 1 where one update reaches the mean, 0 where it is never reached.

    >>> round(1 - spectral_gap(ring(8).weights(0)), 3)  # (1 + 2 cos(2 pi / 8)) / 3
    0.805
    """
    moduli = np.sort(np.abs(np.linalg.eigvals(W)))
    return float(1 - moduli[-2]) if len(moduli) > 1 else 1.0


def check_doubly_stochastic(W: Matrix) -> None:
    """Refuse weights that would not keep the mean.

    Raises:
        UserError: Saying what is wrong with W.

    >>> check_doubly_stochastic(np.array([[0.5, 0.5], [0.4, 0.6]]))
    Traceback (most recent call last):
    bigbatch.core.checks.UserError: weights: column 0 sums to 0.9: must sum to 1, or the mean of all workers drifts; use Metropolis weights
    """
    if W.ndim != 2 or W.shape[0] != W.shape[1]:
        raise UserError(f"weights: have shape {W.shape}: must be a square matrix, a row a worker")
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
    """Refuse a topology whose workers would never reach their mean; one that never repeats is taken on trust.

    Raises:
        UserError: If it falls into parts, or its values swing for ever.
    """
    if topology.period is None:
        return
    cycle = np.linalg.multi_dot([topology.weights(u) for u in range(topology.period)]) if topology.period > 1 else topology.weights(0)
    lonely = _unreached((cycle + cycle.T > TOLERANCE) & ~np.eye(topology.num_workers, dtype=bool))
    if lonely:
        raise UserError(f"topology {topology.name}: worker {lonely[0]} can't be reached from worker 0: must be connected; add edges")
    if spectral_gap(cycle) < TOLERANCE:
        raise UserError(
            f"topology {topology.name}: workers only swap what they have: leave each some weight of its own, such as Metropolis weights"
        )


def metropolis(adjacency: Matrix) -> Matrix:
    """Metropolis-Hastings weights of a graph without direction: 1 / (1 + the larger degree) for each edge, the rest for oneself.

    Args:
        adjacency: Shape (n, n), symmetric, 1 for an edge; the diagonal is not looked at.

    Returns:
        Symmetric and doubly stochastic, with a positive diagonal.

    Raises:
        UserError: If the graph is directed, or falls into parts.

    >>> metropolis(np.array([[0.0, 1.0], [1.0, 0.0]]))
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """
    edges = (np.asarray(adjacency, dtype=float) > 0) & ~np.eye(len(adjacency), dtype=bool)
    if not np.array_equal(edges, edges.T):
        raise UserError("graph: has edges of one direction: must have none; give one without direction, or an exponential topology")
    lonely = _unreached(edges)
    if lonely:
        raise UserError(f"graph: worker {lonely[0]} can't be reached from worker 0: must be connected; add edges")
    degrees = edges.sum(axis=1)
    W = np.where(edges, 1 / (1 + np.maximum(degrees[:, None], degrees[None, :])), 0.0)
    return W + np.diag(1 - W.sum(axis=1))


def ring(num_workers: int) -> Topology:
    """Each with its two neighbours, a third each."""
    return _static("ring", num_workers, [(i, (i + 1) % num_workers) for i in range(_at_least_two("ring", num_workers))])


def torus(num_workers: int) -> Topology:
    """A grid, as square as the number allows, whose edges meet: up to four neighbours each. A prime number of workers is a ring."""
    _at_least_two("torus", num_workers)
    rows = next(r for r in range(math.isqrt(num_workers), 0, -1) if num_workers % r == 0)
    columns = num_workers // rows
    right = [(i, i // columns * columns + (i + 1) % columns) for i in range(num_workers)]
    down = [(i, (i + columns) % num_workers) for i in range(num_workers)]
    return _static("torus", num_workers, [*right, *down])


def complete(num_workers: int) -> Topology:
    """Each with all others: the mean in one update."""
    _at_least_two("complete", num_workers)
    return _static("complete", num_workers, [(i, j) for i in range(num_workers) for j in range(i)])


def star(num_workers: int) -> Topology:
    """All with worker 0."""
    return _static("star", num_workers, [(0, i) for i in range(1, _at_least_two("star", num_workers))])


def symmetric_exponential(num_workers: int) -> Topology:
    """Each with those 1, 2, 4, ... places away, on both sides."""
    _at_least_two("symmetric_exponential", num_workers)
    return _static(
        "symmetric_exponential", num_workers, [(i, (i + hop) % num_workers) for i in range(num_workers) for hop in _hops(num_workers)]
    )


def exponential(num_workers: int) -> Topology:
    """Each hears those 1, 2, 4, ... places behind, all with the same weight; directed."""
    n = _at_least_two("exponential", num_workers)
    hops = _hops(n)
    W = sum((_shift(n, hop) for hop in hops), np.eye(n)) / (len(hops) + 1)
    return Topology("exponential", n, lambda update: W, symmetric=False)  # noqa: ARG005


def one_peer_exponential(num_workers: int) -> Topology:
    """Each hears one other, 1, 2, 4, ... places behind in turn, half and half. A power of two reaches the mean in one cycle."""
    n = _at_least_two("one_peer_exponential", num_workers)
    cycle = [(np.eye(n) + _shift(n, hop)) / 2 for hop in _hops(n)]
    return Topology("one_peer_exponential", n, lambda update: cycle[update % len(cycle)], period=len(cycle), symmetric=False)


def random_match(num_workers: int, seed: int = 0) -> Topology:
    """Pairs drawn anew for every update, the same on every worker, half and half.

    Raises:
        UserError: If the number of workers is odd.
    """
    n = _at_least_two("random_match", num_workers)
    if n % 2:
        raise UserError(f"random_match of {n} workers: one would be left over; start an even number, or choose a ring")

    def weights(update: int) -> Matrix:
        order = np.random.default_rng([seed, update]).permutation(n)
        W = np.eye(n) / 2
        W[order[0::2], order[1::2]] = W[order[1::2], order[0::2]] = 0.5
        return W

    return Topology("random_match", n, weights, period=None)


def from_graph(graph: Any) -> Topology:
    """Any networkx graph without direction, whose nodes are the workers 0 to n - 1, by Metropolis weights.

    Raises:
        UserError: If its nodes are others, or the graph can't be used.
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
    """Any weights of your own, the same in every update.

    Args:
        W: Shape (n, n), doubly stochastic and connected.
        name: What errors call it.

    Raises:
        UserError: If they can't be used.
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
    """The topology of that name.

    Raises:
        UserError: If there is none, or it can't be made with so many workers.
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
        raise UserError(f"{name} of {num_workers} workers: nobody to talk to; start at least 2")
    return num_workers


def _hops(num_workers: int) -> list[int]:
    """1, 2, 4, ... below the number of workers."""
    return [1 << i for i in range((num_workers - 1).bit_length())]


def _shift(num_workers: int, hop: int) -> Matrix:
    """Each hears the one `hop` places behind."""
    return np.roll(np.eye(num_workers), -hop, axis=1)


def _unreached(edges: NDArray[np.bool_]) -> list[int]:
    found, new = {0}, [0]
    while new:
        new = [j for i in new for j in np.flatnonzero(edges[i]).tolist() if j not in found]
        found.update(new)
    return [i for i in range(len(edges)) if i not in found]
