"""Ways to train on many workers: the seconds of an update of each, the bytes that it sends, and what losses of workers leave of it.

    case = Case(workers=4, link=link_of(bandwidth_bytes_per_s=12.5e6, latency_s=0.01), model_bytes=25e6, step_s=0.5)
    seconds_per_update("ring_all_reduce", case)
    update_cost("diloco_int4", case).sent_bytes

An update is one step of every worker: the same samples in each way. It is not the same update in each way: `Strategy.exact` says where
it is that of one worker on the joined batch. The others are faster or slower *per update*; how many updates they need is not known here.
Where workers are lost (`Case.lost_every_s`), seconds are those in which the samples of one update count: see churn.py.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from bigbatch.core.checks import UserError, unknown
from bigbatch.simulate import churn, sent
from bigbatch.simulate import seconds as of
from bigbatch.simulate.case import Case
from bigbatch.simulate.gossip import DEGREES


class Strategy(NamedTuple):
    """A way to train on many workers."""

    seconds: Callable[[Case], float]  # of one update, without losses
    exact: bool  # whether an update is that of one worker on the joined batch
    words: str  # what happens in an update
    sent: Callable[[Case], float]  # bytes that a host sends in an update
    goodput: Callable[[Case, float], float]  # share of the time that counts, where an update takes so many seconds and workers are lost


class UpdateCost(NamedTuple):
    """What one update takes."""

    seconds: float  # in which its samples count; infinite where it is never done between two losses
    sent_bytes: float  # by a host to other hosts, mean over hosts and updates
    goodput: float  # share of the time that counts; 1 without losses


def all_stop(case: Case, update_s: float) -> float:
    """A loss stops all, who make the update again."""
    return churn.redone(update_s, lost_every_s=_lost_every_s(case) / case.workers, recovery_s=case.recovery_s)


def own_loss(case: Case, update_s: float, *, outer: bool = False) -> float:
    """Nobody waits for a lost worker, who (with those of its host) does again what was not exchanged yet."""
    period_s = update_s * (case.outer_period if outer else 1)
    return churn.redone(period_s, lost_every_s=_lost_every_s(case) / case.in_host, recovery_s=case.recovery_s)


def left_out(case: Case, update_s: float, *, local: bool = False, fragments: bool = False, whole_hosts: bool = False) -> float:
    """What a lost worker (or its host) did in a period is left out of the sum, for which the others wait."""
    period_s = update_s * (case.local_steps if local else case.outer_period)
    times = {"lost_every_s": _lost_every_s(case), "recovery_s": case.recovery_s}
    exchanges, together = case.fragments if fragments else 1, case.in_host if whole_hosts else 1
    return churn.left_out(period_s, workers=case.workers, exchanges=exchanges, together=together, **times)


def _lost_every_s(case: Case) -> float:
    if case.lost_every_s is None:
        raise UserError(
            "lost_every_s = None: no worker is lost, all of the time counts; give the mean seconds between losses of one worker"
        )
    return case.lost_every_s


def _ways() -> Iterator[tuple[str, Strategy]]:
    words, overlapped = "every gradient exchanged during the backward pass, by ", of.overlapped_all_reduce_s
    yield "ring_all_reduce", Strategy(partial(overlapped, name="ring"), True, words + "a ring", sent.summed, all_stop)
    by = "gloo's ring: two segments in flight"
    yield "gloo_ring", Strategy(partial(overlapped, name="gloo_ring"), True, words + by, sent.summed, all_stop)
    by = "halving and doubling"
    yield "halving_doubling", Strategy(partial(overlapped, name="halving_doubling"), True, words + by, sent.summed, all_stop)
    yield "tree", Strategy(partial(overlapped, name="tree"), True, words + "a tree", sent.summed, all_stop)
    yield "one_bucket", Strategy(of.one_bucket_s, True, "every gradient exchanged at once, after the backward pass", sent.summed, all_stop)
    half = partial(sent.summed, compression=2.0)
    yield "fp16", Strategy(partial(overlapped, compression=2.0), False, "gradients halved by rounding", half, all_stop)
    yield "powersgd", Strategy(of.powersgd_s, False, "gradients of low rank, with error feedback", sent.powersgd, all_stop)
    yield "top_k", Strategy(of.top_k_update_s, False, "the largest gradients, with error feedback", sent.top_k, all_stop)
    yield "parameter_server", Strategy(of.parameter_server_s, True, "gradients pushed to servers, weights pulled", sent.pushed, all_stop)
    words = "the same without waiting for others: stale gradients"
    yield "asynchronous_server", Strategy(of.asynchronous_parameter_server_s, False, words, sent.pushed, own_loss)
    for name in DEGREES:
        times, counts = partial(of.gossip_s, topology=name), partial(sent.gossip, topology=name)
        yield f"gossip_{name}", Strategy(times, False, "weights averaged with neighbours", counts, own_loss)


def _periodic_ways() -> Iterator[tuple[str, Strategy]]:
    yield "local_sgd", Strategy(of.local_sgd_s, False, "weights averaged every few updates", sent.local_sgd, partial(left_out, local=True))
    yield "diloco", Strategy(of.diloco_s, False, "an outer step every few updates", sent.diloco, left_out)
    pieces = partial(left_out, fragments=True)
    yield "streaming_diloco", Strategy(of.streaming_diloco_s, False, "outer steps of fragments, exchanged meanwhile", sent.diloco, pieces)
    for bits in (8, 4):
        times, counts = partial(of.diloco_s, bits=bits), partial(sent.diloco, bits=bits)
        yield f"diloco_int{bits}", Strategy(times, False, f"an outer step every few updates, sent in {bits} bits", counts, left_out)
    times, words = partial(of.streaming_diloco_s, bits=4), "outer steps of fragments, sent in 4 bits meanwhile"
    yield "streaming_diloco_int4", Strategy(times, False, words, partial(sent.diloco, bits=4), pieces)
    words = "an outer step of the largest displacements, in 2 bits"
    yield "sparse_loco", Strategy(of.sparse_loco_s, False, words, sent.sparse_loco, left_out)
    words = "an outer step with one random peer, every few updates"
    yield "noloco", Strategy(of.noloco_s, False, words, sent.noloco, partial(own_loss, outer=True))
    words, hosts = "every gradient inside a host, outer steps between hosts", partial(left_out, whole_hosts=True)
    yield "hierarchical_diloco", Strategy(of.hierarchical_diloco_s, False, words, sent.diloco, hosts)


STRATEGIES: dict[str, Strategy] = {**dict(_ways()), **dict(_periodic_ways())}


def update_cost(strategy: str, case: Case) -> UpdateCost:
    """Seconds and bytes of one update.

    Args:
        strategy: A name in `STRATEGIES`.
        case: The case. Where a strategy's own latency or bandwidth was measured, give it a case with that link.

    Returns:
        Expected values, once the run goes steadily.

    Raises:
        UserError: If there is no such strategy, or it can't be run with so many hosts.

    >>> from bigbatch.simulate.link import Link
    >>> case = Case(workers=2, link=Link(0.5, 0.25), model_bytes=80, step_s=3.0, outer_period=30)
    >>> update_cost("diloco", case)  # 3 s of computing, and a thirtieth of 2 messages of 40 bytes, 10.5 s each
    UpdateCost(seconds=3.7, sent_bytes=2.6666666666666665, goodput=1.0)
    """
    if strategy not in STRATEGIES:
        raise UserError(unknown("strategy", strategy, STRATEGIES))
    way = STRATEGIES[strategy]
    seconds = way.seconds(case)
    goodput = 1.0 if case.lost_every_s is None else way.goodput(case, seconds)
    return UpdateCost(seconds / goodput if goodput else math.inf, way.sent(case), goodput)


def seconds_per_update(strategy: str, case: Case) -> float:
    """Seconds of one update, as `update_cost` has them. `case.step_s` for one host that exchanges nothing.

    Raises:
        UserError: If there is no such strategy, or it can't be run with so many hosts.

    >>> from bigbatch.simulate.link import Link
    >>> case = Case(workers=4, link=Link(0.5, 0.25), model_bytes=8, step_s=3.0, bucket_bytes=4, local_steps=5)
    >>> seconds_per_update("ring_all_reduce", case)  # 1 forward, 1 to the first of two buckets, then 3 + 1.5 for each
    11.0
    >>> seconds_per_update("gossip_ring", case)  # 0.5 + 2 * 8 * 0.25, beside the 3 of computing
    4.5
    """
    return update_cost(strategy, case).seconds


def cost_of_all(case: Case) -> dict[str, UpdateCost]:
    """What an update takes in every way that can be run with so many hosts, by name."""
    impossible = {"gossip_random_match"} if case.hosts % 2 == 1 and case.hosts > 1 else set()
    if case.workers_per_host == 1:
        impossible.add("hierarchical_diloco")
    return {name: update_cost(name, case) for name in STRATEGIES if name not in impossible}


def seconds_of_all(case: Case) -> dict[str, float]:
    """Seconds per update of every strategy that can be run with so many hosts, by name."""
    return {name: cost.seconds for name, cost in cost_of_all(case).items()}
