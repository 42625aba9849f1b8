r"""Parameter server: n workers push b bytes of gradients to k servers and pull b bytes of weights; each server holds b/k.

    push = alpha + b max(n/k (beta + gamma), beta)      a server's port takes one message after the other, a worker's sends b
    pull = alpha + b max(n/k, 1) beta
    synchronous: pulls begin when all have pushed                          compute + push + pull
    asynchronous: nobody waits for other workers; for n gradients          max(compute + 2 alpha + b (max((beta + gamma)/k, beta) + beta),
                                                                               n/k b (beta + gamma))
    The second term of the last is the servers' ports, which receive and send at once: they bound what any number of workers can do.

An asynchronous update is one worker's gradient, taken at weights that others have changed since: seconds are those of n such updates, the
same samples as one synchronous update.
"""

from bigbatch.core.checks import UserError
from bigbatch.simulate.link import Link


def synchronous_s(link: Link, num_bytes: float, *, workers: int, servers: int, compute_s: float) -> float:
    """Seconds of one update of all workers, the slowest of which computes for `compute_s`.

    Raises:
        UserError: If there is no worker or no server.

    >>> synchronous_s(Link(0.5, 0.25), 8, workers=4, servers=2, compute_s=1.0)  # push and pull: 0.5 + 8 * 2 * 0.25 each
    10.0
    """
    _check(workers, servers)
    push = link.alpha_s + num_bytes * max(workers / servers * link.reduced_s_per_byte, link.beta_s_per_byte)
    return compute_s + push + link.alpha_s + num_bytes * max(workers / servers, 1) * link.beta_s_per_byte


def asynchronous_s(link: Link, num_bytes: float, *, workers: int, servers: int, compute_s: float) -> float:
    """Seconds in which as many gradients are applied as there are workers, each computing for `compute_s`.

    Raises:
        UserError: If there is no worker or no server.

    >>> asynchronous_s(Link(0.5, 0.25), 8, workers=4, servers=1, compute_s=1.0)  # 1 + 2 * 2.5 s a cycle, 4 * 2 s at the server
    8.0
    """
    _check(workers, servers)
    own = 2 * link.alpha_s + num_bytes * (max(link.reduced_s_per_byte / servers, link.beta_s_per_byte) + link.beta_s_per_byte)
    return max(compute_s + own, workers / servers * num_bytes * link.reduced_s_per_byte)


def _check(workers: int, servers: int) -> None:
    for name, value in (("workers", workers), ("servers", servers)):
        if value < 1:
            raise UserError(f"{name} = {value}: must be 1 or more; give how many there are")
