r"""Overlap: gradients leave in buckets while the backward pass goes on.

    Bucket i is ready r_i seconds into the backward pass, and its all-reduce costs a + b_i beta. With c all-reduces in flight at most,
        start_i = max(r_i, end_(i - c))
        end_i   = max(start_i + a, wire_(i - 1)) + b_i beta,   wire_i = end_i
    so latencies of up to c buckets pass at the same time, and bytes one after the other. The update can be made at the last end, and not
    before the backward pass is over.

DistributedDataParallel fills buckets of 25 MiB, from the last layer to the first; gloo has two all-reduces in flight, NCCL one.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bigbatch.core.checks import UserError, check_positive
from bigbatch.simulate.alpha_beta import AlphaBeta


class Bucket(NamedTuple):
    """Gradients that are exchanged together."""

    num_bytes: float
    ready: float  # share of the backward pass after which all of them are there, from 0 to 1


def even_buckets(model_bytes: float, bucket_bytes: float) -> list[Bucket]:
    """Buckets of equal size, at most `bucket_bytes` each, of a model whose gradients come at an even rate.

    Raises:
        UserError: If a size is not above zero.

    >>> even_buckets(100, 60)
    [Bucket(num_bytes=50.0, ready=0.5), Bucket(num_bytes=50.0, ready=1.0)]
    """
    check_positive("model_bytes", model_bytes)
    check_positive("bucket_bytes", bucket_bytes)
    number = math.ceil(model_bytes / bucket_bytes)
    return [Bucket(model_bytes / number, (i + 1) / number) for i in range(number)]


def backward_and_exchange_s(
    buckets: Sequence[Bucket], cost: Callable[[float], AlphaBeta], *, backward_s: float, streams: int = 1, compression: float = 1.0
) -> float:
    """Seconds from the start of the backward pass until every gradient is exchanged.

    Args:
        buckets: In the order in which they are ready.
        cost: Of one all-reduce of so many bytes.
        backward_s: Seconds of the backward pass alone.
        streams: All-reduces in flight at most, c.
        compression: Bytes of a gradient over bytes sent, 1 for none.

    Returns:
        Seconds, `backward_s` at least.

    Raises:
        UserError: If an argument is out of range.

    >>> backward_and_exchange_s([Bucket(4, 0.5), Bucket(4, 1.0)], lambda num_bytes: AlphaBeta(1.0, 0.25), backward_s=2.0)
    5.0
    """
    check_positive("backward_s", backward_s)
    check_positive("compression", compression)
    if streams < 1:
        raise UserError(f"streams = {streams}: must be 1 or more; 1 is one all-reduce after the other")
    ends: list[float] = []
    wire = 0.0
    for i, bucket in enumerate(buckets):
        sent = bucket.num_bytes / compression
        alpha_s, beta_s_per_byte, _ = cost(sent)
        start = max(bucket.ready * backward_s, ends[i - streams] if i >= streams else 0.0)
        wire = max(start + alpha_s, wire) + beta_s_per_byte * sent
        ends.append(wire)
    return max(backward_s, wire)
