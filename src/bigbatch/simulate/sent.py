"""Bytes that a host sends to other hosts in an update, in each way to train on many workers: the mean over hosts and updates.

    sum of b bytes for all of p hosts     2 (p - 1)/p b      by a ring, halving and doubling, a tree: they differ in who sends, not in all
    gathering b bytes of each             (p - 1) b
    gossip with d neighbours              d b
    parameter server                      b                  what servers send back is not counted
Every H updates: a share of it for each.
"""

from bigbatch.simulate import outer
from bigbatch.simulate.case import Case
from bigbatch.simulate.compression import top_k_bytes
from bigbatch.simulate.gossip import mean_degree


def summed(case: Case, compression: float = 1.0) -> float:
    """Every gradient, of which `compression` bytes become one."""
    return 2 * (case.hosts - 1) / case.hosts * case.model_bytes / compression


def powersgd(case: Case) -> float:
    """P, Q and vectors."""
    return summed(case, case.powersgd_ratio)


def top_k(case: Case) -> float:
    """What a host keeps, to all others."""
    return (case.hosts - 1) * top_k_bytes(case.model_bytes, case.top_k_share)


def local_sgd(case: Case) -> float:
    """Weights, every H updates."""
    return summed(case) / case.local_steps


def diloco(case: Case, bits: int | None = None) -> float:
    """Displacements, every H updates; whole or in fragments."""
    compression = case.model_bytes / outer.quantized_bytes(case.model_bytes, bits) if bits else 1.0
    return summed(case, compression) / case.outer_period


def sparse_loco(case: Case) -> float:
    """The largest of the displacement, to all others."""
    return (case.hosts - 1) * outer.sparse_bytes(case.model_bytes) / case.outer_period


def noloco(case: Case) -> float:
    """Displacement and weights to one peer; of an odd number of hosts one is left over."""
    return 2 * case.model_bytes * (case.hosts - case.hosts % 2) / case.hosts / case.outer_period


def pushed(case: Case) -> float:
    """Gradients to the servers."""
    return case.model_bytes


def gossip(case: Case, topology: str) -> float:
    """Weights to neighbours."""
    return mean_degree(topology, case.hosts) * case.model_bytes
