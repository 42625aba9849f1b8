"""Ways to train on many workers, and the seconds of an update of each.

    case = Case(workers=4, link=link_of(bandwidth_bytes_per_s=12.5e6, latency_s=0.01), model_bytes=25e6, step_s=0.5)
    seconds_per_update("ring_all_reduce", case)

An update is one step of every worker: the same samples in each way. It is not the same update in each way: `Strategy.exact` says where
it is that of one worker on the joined batch. The others are faster or slower *per update*; how many updates they need is not known here.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from bigbatch.core.checks import UserError, unknown
from bigbatch.simulate import parameter_server
from bigbatch.simulate.all_reduce import ALL_REDUCES, FASTEST, all_reduce
from bigbatch.simulate.case import Case
from bigbatch.simulate.compression import top_k_s
from bigbatch.simulate.gossip import DEGREES, degree, exchange_s
from bigbatch.simulate.overlap import backward_and_exchange_s
from bigbatch.simulate.straggler import slowest, slowest_nearby


class Strategy(NamedTuple):
    """A way to train on many workers."""

    seconds: Callable[[Case], float]  # of one update
    exact: bool  # whether an update is that of one worker on the joined batch
    words: str  # what happens in an update


def overlapped_all_reduce_s(case: Case, name: str | None = None, *, compression: float = 1.0) -> float:
    """Forward, then backward with the all-reduce of its buckets; the slowest worker counts.

    Args:
        case: The case.
        name: Of the all-reduce; None takes the case's.
        compression: Bytes of a gradient over bytes sent.
    """
    name = name or case.all_reduce
    if name == FASTEST:  # of the whole update: with several in flight, not the one that is fastest alone
        return min(overlapped_all_reduce_s(case, each, compression=compression) for each in ALL_REDUCES)
    cost = partial(all_reduce, name, case.link, case.hosts)
    backward_s = case.backward_share * case.slowest_s
    exchanged_s = backward_and_exchange_s(case.gradients, cost, backward_s=backward_s, streams=case.streams, compression=compression)
    return case.slowest_s - backward_s + exchanged_s


def powersgd_s(case: Case) -> float:
    """The whole step, compression, then the all-reduces of vectors, P and Q, in one bucket after the backward pass."""
    sent = case.model_bytes / case.powersgd_ratio
    cost = all_reduce(case.all_reduce, case.link, case.hosts, sent / case.powersgd_all_reduces)
    return case.slowest_s + _compress_s(case) + case.powersgd_all_reduces * cost.alpha_s + cost.beta_s_per_byte * sent


def top_k_update_s(case: Case) -> float:
    """The whole step, compression, then the gathering of what every host keeps."""
    return case.slowest_s + _compress_s(case) + top_k_s(case.link, case.model_bytes, hosts=case.hosts, share=case.top_k_share)


def local_sgd_s(case: Case) -> float:
    """Steps alone, and every H of them an all-reduce of the weights: a share of it and of the waiting for each."""
    compute_s = case.step_s * slowest(case.workers, case.spread, updates=case.local_steps)
    return compute_s + all_reduce(case.all_reduce, case.link, case.hosts, case.model_bytes).seconds(case.model_bytes) / case.local_steps


def parameter_server_s(case: Case) -> float:
    """Compute, push, pull; servers wait for all hosts."""
    sizes = {"workers": case.hosts, "servers": case.servers}
    return parameter_server.synchronous_s(case.link, case.model_bytes, compute_s=case.slowest_s, **sizes)


def asynchronous_parameter_server_s(case: Case) -> float:
    """Seconds in which as many gradients are applied as there are hosts."""
    sizes = {"workers": case.hosts, "servers": case.servers}
    return parameter_server.asynchronous_s(case.link, case.model_bytes, compute_s=case.host_s, **sizes)


def gossip_s(case: Case, topology: str) -> float:
    """Compute, and exchange weights with neighbours, at the same time or after.

    At the same time, a host waits for a neighbour only where that is a whole step behind: the mean counts, not the slowest.

    Raises:
        UserError: If the topology can't be made with so many hosts.
    """
    if topology == "random_match" and case.hosts % 2 and case.hosts > 1:
        raise UserError(f"random_match of {case.hosts} hosts: one would be left over; give an even number, or choose a ring")
    neighbours = degree(topology, case.hosts)
    exchanged_s = exchange_s(case.link, case.model_bytes, neighbours)
    if case.overlap:
        return max(case.host_s, exchanged_s)
    waits_for = (neighbours + 1) * min(case.workers_per_host, case.workers)
    return case.step_s * slowest_nearby(case.workers, case.spread, waits_for) + exchanged_s


def _compress_s(case: Case) -> float:
    return case.compress_s if case.hosts > 1 else 0.0


def _all_reduces() -> Iterator[tuple[str, Strategy]]:
    words = "every gradient exchanged during the backward pass, by "
    yield "ring_all_reduce", Strategy(partial(overlapped_all_reduce_s, name="ring"), True, words + "a ring")
    yield "gloo_ring", Strategy(partial(overlapped_all_reduce_s, name="gloo_ring"), True, words + "gloo's ring: two segments in flight")
    yield "halving_doubling", Strategy(partial(overlapped_all_reduce_s, name="halving_doubling"), True, words + "halving and doubling")
    yield "tree", Strategy(partial(overlapped_all_reduce_s, name="tree"), True, words + "a tree")
    yield "fp16", Strategy(partial(overlapped_all_reduce_s, compression=2.0), False, "gradients halved by rounding")
    yield "powersgd", Strategy(powersgd_s, False, "gradients of low rank, with error feedback")
    yield "top_k", Strategy(top_k_update_s, False, "the largest gradients, with error feedback")
    yield "local_sgd", Strategy(local_sgd_s, False, "weights averaged every few updates")
    yield "parameter_server", Strategy(parameter_server_s, True, "gradients pushed to servers, weights pulled")
    yield "asynchronous_server", Strategy(asynchronous_parameter_server_s, False, "the same without waiting for others: stale gradients")


STRATEGIES: dict[str, Strategy] = {
    **dict(_all_reduces()),
    **{f"gossip_{name}": Strategy(partial(gossip_s, topology=name), False, "weights averaged with neighbours") for name in DEGREES},
}


def seconds_per_update(strategy: str, case: Case) -> float:
    """Seconds of one update.

    Args:
        strategy: A name in `STRATEGIES`.
        case: The case. Where a strategy's own latency or bandwidth was measured, give it a case with that link.

    Returns:
        Expected seconds, once the run goes steadily. `case.step_s` for one host that exchanges nothing.

    Raises:
        UserError: If there is no such strategy, or it can't be run with so many hosts.

    >>> from bigbatch.simulate.link import Link
    >>> case = Case(workers=4, link=Link(0.5, 0.25), model_bytes=8, step_s=3.0, bucket_bytes=4, local_steps=5)
    >>> seconds_per_update("ring_all_reduce", case)  # 1 forward, 1 to the first of two buckets, then 3 + 1.5 for each
    11.0
    >>> seconds_per_update("gossip_ring", case)  # 0.5 + 2 * 8 * 0.25, beside the 3 of computing
    4.5
    """
    if strategy not in STRATEGIES:
        raise UserError(unknown("strategy", strategy, STRATEGIES))
    return STRATEGIES[strategy].seconds(case)


def seconds_of_all(case: Case) -> dict[str, float]:
    """Seconds per update of every strategy that can be run with so many hosts, by name."""
    odd = case.hosts % 2 == 1 and case.hosts > 1
    return {name: seconds_per_update(name, case) for name in STRATEGIES if not (odd and name == "gossip_random_match")}
