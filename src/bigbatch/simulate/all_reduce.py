r"""All-reduce of b bytes over p hosts: by a ring, by halving and doubling, by a tree.

Paper:   Thakur, Rabenseifner, Gropp 2005, Optimization of Collective Communication Operations in MPICH, IJHPCA 19(1), Section 4.5,
         https://doi.org/10.1177/1094342005051521; the ring: Patarasu, Yuan 2009, JPDC 69(2).
Formula: with one message alpha + b beta, one addition b gamma, lg the logarithm to base 2,
         ring              2 (p - 1) alpha  +  2 (p - 1)/p b beta  +  (p - 1)/p b gamma
         halving-doubling  2 lg p alpha     +  2 (p - 1)/p b beta  +  (p - 1)/p b gamma              p a power of two
                           of the largest power of two q < p, plus  2 alpha + 2 b beta + b gamma     else
         tree              2 lg p (alpha + b beta)  +  lg p b gamma                                  lg p rounded up
Units:   seconds, bytes.
Differs: where p is no power of two, p - q hosts hand everything to a neighbour and get the sum back at the end, as MPICH's code does;
         Goyal et al. 2017 use binary blocks, which cost less. The tree is binomial, a reduce and then a broadcast of the whole: the
         pipelined double trees of NCCL cost less. Messages of the ring wait for each other: gloo's (gloo_ring.py) do so in pairs.
"""

import math
from collections.abc import Callable

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.paper import Paper
from bigbatch.simulate.alpha_beta import AlphaBeta, ring_all_reduce
from bigbatch.simulate.gloo_ring import gloo_ring
from bigbatch.simulate.link import Link

PAPER = Paper(
    method="All-reduce by ring, halving and doubling, or tree",
    title="Optimization of Collective Communication Operations in MPICH",
    authors="Thakur, Rabenseifner, Gropp",
    year=2005,
    arxiv="",
    where="Section 4.5",
    link="https://doi.org/10.1177/1094342005051521",
)
FREE = AlphaBeta(0.0, 0.0)
"""One host exchanges nothing."""


def ring(link: Link, hosts: int) -> AlphaBeta:
    """Cost of a ring all-reduce.

    >>> ring(Link(0.5, 0.25), 4)
    AlphaBeta(alpha_s=3.0, beta_s_per_byte=0.375, residual=0.0)
    """
    if _alone(hosts):
        return FREE
    whole = ring_all_reduce(link.message, workers=hosts)
    return whole._replace(beta_s_per_byte=whole.beta_s_per_byte + (hosts - 1) / hosts * link.gamma_s_per_byte)


def halving_doubling(link: Link, hosts: int) -> AlphaBeta:
    """Cost of recursive halving, then doubling.

    >>> halving_doubling(Link(0.5, 0.25), 4)
    AlphaBeta(alpha_s=2.0, beta_s_per_byte=0.375, residual=0.0)
    >>> halving_doubling(Link(0.5, 0.25), 5)  # one host first adds to another, and hears the sum at the end
    AlphaBeta(alpha_s=3.0, beta_s_per_byte=0.875, residual=0.0)
    """
    if _alone(hosts):
        return FREE
    rounds = hosts.bit_length() - 1
    inside = 1 << rounds
    share = (inside - 1) / inside
    alpha, beta, gamma = 2 * rounds, 2 * share, share
    if inside < hosts:
        alpha, beta, gamma = alpha + 2, beta + 2, gamma + 1
    return AlphaBeta(alpha * link.alpha_s, beta * link.beta_s_per_byte + gamma * link.gamma_s_per_byte)


def tree(link: Link, hosts: int) -> AlphaBeta:
    """Cost of a binomial tree: a reduce, then a broadcast.

    >>> tree(Link(0.5, 0.25), 4)
    AlphaBeta(alpha_s=2.0, beta_s_per_byte=1.0, residual=0.0)
    """
    if _alone(hosts):
        return FREE
    depth = (hosts - 1).bit_length()
    return AlphaBeta(2 * depth * link.alpha_s, depth * (2 * link.beta_s_per_byte + link.gamma_s_per_byte))


CLOSED_FORMS: dict[str, Callable[[Link, int], AlphaBeta]] = {"ring": ring, "halving_doubling": halving_doubling, "tree": tree}
ALL_REDUCES = (*CLOSED_FORMS, "gloo_ring")
FASTEST = "fastest"


def all_reduce(name: str, link: Link, hosts: int, num_bytes: float) -> AlphaBeta:
    """Cost of the all-reduce of that name at `num_bytes`; of the one that is fastest there if it is "fastest".

    Raises:
        UserError: If there is none of that name, or no host.
    """
    if _alone(hosts):
        return FREE
    if name == FASTEST:
        return min((all_reduce(each, link, hosts, num_bytes) for each in ALL_REDUCES), key=lambda cost: cost.seconds(num_bytes))
    if name == "gloo_ring":
        return gloo_ring(link, hosts, num_bytes)
    if name not in CLOSED_FORMS:
        raise UserError(unknown("all-reduce", name, [*ALL_REDUCES, FASTEST]))
    return CLOSED_FORMS[name](link, hosts)


def crossing_bytes(link: Link, hosts: int) -> float:
    """Size up to which halving-doubling is faster than a ring; 0 if never, infinite if always.

    >>> round(crossing_bytes(Link(0.5, 0.25), 5), 6)  # (8 - 6) 0.5 s saved against (3.5 - 1.6) 0.25 s a byte
    2.105263
    """
    one, other = ring(link, hosts), halving_doubling(link, hosts)
    saved_s, lost = one.alpha_s - other.alpha_s, other.beta_s_per_byte - one.beta_s_per_byte
    if saved_s <= 0:
        return 0.0
    return saved_s / lost if lost > 1e-12 * one.beta_s_per_byte else math.inf


def _alone(hosts: int) -> bool:
    if hosts < 1:
        raise UserError(f"hosts = {hosts}: must be 1 or more; one exchanges nothing")
    return hosts == 1
