r"""Gossip: each host exchanges weights with its neighbours only, d messages of b bytes in and out of its port.

    exchange = alpha + d b (beta + gamma)
    while computing (D-PSGD: the gradient is taken at the weights that are being averaged)     max(compute, exchange)
    after it (adapt, then combine)                                                             compute + exchange

d counts what the busiest host sends or receives in one update; `bigbatch.comm.gossip.topology` has the graphs themselves. On a line of
equal hosts a ring sends 2 b where a ring all-reduce sends 2 (n - 1)/n b: it saves latency, not bytes; one peer at a time saves both.
"""

from collections.abc import Callable

from bigbatch.core.checks import UserError, unknown
from bigbatch.simulate.link import Link

DEGREES: dict[str, Callable[[int], int]] = {
    "ring": lambda n: min(2, n - 1),
    "torus": lambda n: sum(min(2, side - 1) for side in sides_of_torus(n)),
    "complete": lambda n: n - 1,
    "star": lambda n: n - 1,
    "exponential": lambda n: len(_hops(n)),
    "one_peer_exponential": lambda n: min(1, n - 1),
    "symmetric_exponential": lambda n: len({hop for h in _hops(n) for hop in (h % n, -h % n)}),
    "random_match": lambda n: min(1, n - 1),
}
"""Topology, as `bigbatch.comm.gossip.topology` names it, to messages of the busiest host."""


def degree(topology: str, hosts: int) -> int:
    """Messages that the busiest host sends, or receives, in one update.

    Raises:
        UserError: If there is no such topology, or no host.

    >>> degree("ring", 8), degree("torus", 12), degree("exponential", 8), degree("one_peer_exponential", 8)
    (2, 4, 3, 1)
    """
    if topology not in DEGREES:
        raise UserError(unknown("topology", topology, DEGREES))
    if hosts < 1:
        raise UserError(f"hosts = {hosts}: must be 1 or more; one exchanges nothing")
    return DEGREES[topology](hosts)


def mean_degree(topology: str, hosts: int) -> float:
    """Messages that a host sends in one update, mean over hosts: as many for each, but in a star.

    >>> mean_degree("ring", 8), mean_degree("star", 8)  # 7 from the centre, 7 to it
    (2.0, 1.75)
    """
    busiest = degree(topology, hosts)
    return 2 * busiest / hosts if topology == "star" else float(busiest)


def exchange_s(link: Link, num_bytes: float, degree: int) -> float:
    """Seconds until a host has sent to all its neighbours and heard from them.

    >>> exchange_s(Link(0.5, 0.25), 8, degree=2)
    4.5
    """
    return link.alpha_s + degree * num_bytes * link.reduced_s_per_byte if degree else 0.0


def sides_of_torus(hosts: int) -> tuple[int, int]:
    """Rows and columns, as near to a square as the number allows.

    >>> sides_of_torus(12), sides_of_torus(7)
    ((3, 4), (1, 7))
    """
    rows = next(r for r in range(int(hosts**0.5), 0, -1) if hosts % r == 0)
    return rows, hosts // rows


def _hops(hosts: int) -> list[int]:
    return [1 << i for i in range((hosts - 1).bit_length())]
