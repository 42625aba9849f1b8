"""Seconds of an update of a case, in each way to train on many workers; no worker is lost. `strategies` has the ways by name."""

from functools import partial

from bigbatch.core.checks import UserError
from bigbatch.simulate import outer, parameter_server
from bigbatch.simulate.all_reduce import ALL_REDUCES, FASTEST
from bigbatch.simulate.case import Case
from bigbatch.simulate.compression import top_k_s
from bigbatch.simulate.gossip import degree, exchange_s
from bigbatch.simulate.overlap import backward_and_exchange_s
from bigbatch.simulate.straggler import slowest, slowest_group, slowest_nearby


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
    backward_s, cost = case.backward_share * case.slowest_s, partial(case.all_reduced, name=name)
    exchanged_s = backward_and_exchange_s(case.gradients, cost, backward_s=backward_s, streams=case.streams, compression=compression)
    return case.slowest_s - backward_s + exchanged_s


def one_bucket_s(case: Case) -> float:
    """The whole step, then one all-reduce: nothing is hidden, and latency is paid once."""
    return case.slowest_s + case.all_reduced(case.model_bytes).seconds(case.model_bytes)


def powersgd_s(case: Case) -> float:
    """The whole step, compression, then the all-reduces of vectors, P and Q, in one bucket after the backward pass."""
    sent = case.model_bytes / case.powersgd_ratio
    cost = case.all_reduced(sent / case.powersgd_all_reduces)
    return case.slowest_s + _compress_s(case) + case.powersgd_all_reduces * cost.alpha_s + cost.beta_s_per_byte * sent


def top_k_update_s(case: Case) -> float:
    """The whole step, compression, then the gathering of what every host keeps."""
    gathered_s = top_k_s(case.link, case.model_bytes, hosts=case.hosts, share=case.top_k_share, ring=_rings(case))
    return case.slowest_s + _compress_s(case) + _inside_s(case) + gathered_s


def local_sgd_s(case: Case) -> float:
    """Steps alone, and every H of them an all-reduce of the weights: a share of it and of the waiting for each."""
    return _every_s(case, case.local_steps, case.all_reduced(case.model_bytes).seconds(case.model_bytes))


def diloco_s(case: Case, bits: int | None = None) -> float:
    """Steps alone, and every H of them an all-reduce of the displacements; in few bits, if `bits` says how many."""
    return _every_s(case, case.outer_period, _displacement_s(case, case.model_bytes, bits))


def sparse_loco_s(case: Case) -> float:
    """The same with the largest of each displacement, gathered by all."""
    gathered_s = outer.gather_s(case.link, case.hosts, outer.sparse_bytes(case.model_bytes), ring=_rings(case))
    return _every_s(case, case.outer_period, _compress_s(case) + _inside_s(case) + gathered_s)


def streaming_diloco_s(case: Case, bits: int | None = None) -> float:
    """Fragments exchanged one after the other, while steps go on."""
    exchanged_s = _displacement_s(case, case.model_bytes / case.fragments, bits)
    every = case.outer_period / case.fragments
    return outer.streaming_s(case.step_s, exchanged_s, every=every, delay=case.overlap_updates, workers=case.workers, spread=case.spread)


def noloco_s(case: Case) -> float:
    """Steps alone, and every H of them an exchange with one random peer, for whom alone a worker waits."""
    computed = slowest_nearby(case.workers, case.spread, waits_for=2 * case.in_host, updates=case.outer_period)
    return case.step_s * computed + (_inside_s(case) + outer.pair_s(case.link, case.model_bytes, case.hosts)) / case.outer_period


def hierarchical_diloco_s(case: Case) -> float:
    """All-reduce of every gradient inside a host, during the backward pass; every H updates an outer step between hosts.

    Raises:
        UserError: If hosts have one worker each.
    """
    if case.workers_per_host == 1:
        raise UserError("workers_per_host = 1: hierarchical_diloco needs 2 or more; give how many share a host, or choose diloco")
    alone_s = case.step_s * slowest_group(case.in_host, case.hosts, case.spread, updates=case.outer_period)
    backward_s = case.backward_share * alone_s
    inside_s = alone_s - backward_s + backward_and_exchange_s(case.gradients, case.inside, backward_s=backward_s, streams=case.streams)
    return inside_s + case.between(case.model_bytes).seconds(case.model_bytes) / case.outer_period


def parameter_server_s(case: Case) -> float:
    """Compute, push, pull; servers wait for all hosts."""
    sizes = {"workers": case.hosts, "servers": case.servers}
    return parameter_server.synchronous_s(case.link, case.model_bytes, compute_s=case.slowest_s + _inside_s(case), **sizes)


def asynchronous_parameter_server_s(case: Case) -> float:
    """Seconds in which as many gradients are applied as there are hosts."""
    sizes = {"workers": case.hosts, "servers": case.servers}
    return parameter_server.asynchronous_s(case.link, case.model_bytes, compute_s=case.host_s + _inside_s(case), **sizes)


def gossip_s(case: Case, topology: str) -> float:
    """Compute, and exchange weights with neighbours, at the same time or after.

    At the same time, a host waits for a neighbour only where that is a whole step behind: the mean counts, not the slowest.

    Raises:
        UserError: If the topology can't be made with so many hosts.
    """
    if topology == "random_match" and case.hosts % 2 and case.hosts > 1:
        raise UserError(f"random_match of {case.hosts} hosts: one would be left over; give an even number, or choose a ring")
    neighbours = degree(topology, case.hosts)
    exchanged_s = exchange_s(case.link, case.model_bytes, neighbours) + _inside_s(case)
    if case.overlap:
        return max(case.host_s, exchanged_s)
    waits_for = (neighbours + 1) * case.in_host
    return case.step_s * slowest_nearby(case.workers, case.spread, waits_for) + exchanged_s


def _every_s(case: Case, period: int, exchanged_s: float) -> float:
    return case.step_s * slowest(case.workers, case.spread, updates=period) + exchanged_s / period


def _displacement_s(case: Case, num_bytes: float, bits: int | None) -> float:
    """Of one exchange; coding takes its share of the case's seconds."""
    if bits is None:
        return case.all_reduced(num_bytes).seconds(num_bytes)
    coded_s = _compress_s(case) * num_bytes / case.model_bytes
    exchanged_s = outer.quantized_all_reduce_s(case.link, case.hosts, num_bytes, bits=bits, ring=_rings(case))
    return case.inside(num_bytes).seconds(num_bytes) + coded_s + exchanged_s


def _inside_s(case: Case) -> float:
    return case.inside(case.model_bytes).seconds(case.model_bytes)


def _compress_s(case: Case) -> float:
    return case.compress_s if case.hosts > 1 else 0.0


def _rings(case: Case) -> bool:
    """Whether what is gathered goes along a ring."""
    return case.all_reduce in ("ring", "gloo_ring")
