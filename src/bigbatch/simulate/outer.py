r"""Outer steps: workers exchange once in H updates, fewer bits, pieces at a time, or with one peer.

Source:  DiLoCo arXiv:2311.08105; Streaming DiLoCo arXiv:2501.18512; SparseLoCo arXiv:2508.15706; NoLoCo arXiv:2506.10911. The gathering:
         Thakur, Rabenseifner, Gropp 2005, Section 4.1.
Formula: with p hosts, b bytes of float32, a message alpha + b beta, an addition gamma a byte, lg the logarithm to base 2, rounded up,
         q bits a value       b' = b/4 (q/8 + 4/256)                    a float32 scale for each 256 values
             shards to their  alpha + (p - 1)/p (b' beta + b gamma)     all messages leave at once; the sums are in float32
             owners, and back A alpha + (p - 1)/p b' beta               A = lg p by doubling, p - 1 along a ring (gloo's)
         64 of 4,096 values   k = ceil(b/4 / 4096) (64 (12 + 2)/8 + 8)  index, value, and two float32 a chunk: 120 bytes
             gathered by all  A alpha + (p - 1) k (beta + gamma)
         one peer             alpha + 2 b (beta + gamma)                displacement and weights
         F fragments, each once in H updates of c seconds, so one in h = H/F; an exchange takes e, and is applied t = min(tau, h) updates
         after it began. Times to compute are s c apart, as in straggler.py, E(p) the expected largest of p standard normals:
             update = c + max(0, max over m = 1, 2, ... of  (E(p) s c sqrt(m h - t) + e - t c) / (m h))
         Without a spread, what of e exceeds t updates is waited for: c + max(0, e - t c)/h. With one, a worker that is t updates behind
         stops all; the formula follows the slowest for m exchanges, then goes on with the worker that is slowest next.
Units:   seconds, bytes.
Differs: making and applying the outer step costs nothing here, as does coding and decoding, unless the case's `compress_s` has it.
"""

import math

from bigbatch.core.checks import check_positive
from bigbatch.simulate.gossip import exchange_s
from bigbatch.simulate.link import Link
from bigbatch.simulate.straggler import expected_largest

VALUE_BYTES = 4
BLOCK_VALUES = 256  # that share a scale
CHUNK_VALUES, CHUNK_BYTES = 4096, 64 * (12 + 2) // 8 + 8


def quantized_bytes(num_bytes: float, bits: int) -> float:
    """Bytes of a displacement in q bits a value.

    >>> quantized_bytes(1024, 4), quantized_bytes(1024, 8)  # 256 values: 128 or 256 bytes, and a scale of 4
    (132.0, 260.0)
    """
    return num_bytes / VALUE_BYTES * (bits / 8 + 4 / BLOCK_VALUES)


def sparse_bytes(num_bytes: float) -> float:
    """Bytes of the 64 largest of each 4,096 values: indices, 2 bits each, and scales.

    >>> sparse_bytes(4 * 4096), sparse_bytes(4 * 4097)
    (120, 240)
    """
    return math.ceil(num_bytes / VALUE_BYTES / CHUNK_VALUES) * CHUNK_BYTES


def gather_rounds(hosts: int, *, ring: bool) -> int:
    """A, messages that wait for each other until all have what each of them has.

    >>> gather_rounds(8, ring=True), gather_rounds(8, ring=False), gather_rounds(9, ring=False), gather_rounds(1, ring=False)
    (7, 3, 4, 0)
    """
    return hosts - 1 if ring else (hosts - 1).bit_length()


def gather_s(link: Link, hosts: int, num_bytes: float, *, ring: bool, added: bool = True) -> float:
    """Seconds until every host has the `num_bytes` of every other.

    Args:
        link: Between hosts.
        hosts: p.
        num_bytes: That each host has to give.
        ring: Whether pieces go along a ring; else twice as many in each round.
        added: Whether receivers add what they get.

    >>> gather_s(Link(0.5, 0.25), 4, 8, ring=False)  # 2 rounds, and 3 pieces of 2 s
    7.0
    """
    per_byte = link.reduced_s_per_byte if added else link.beta_s_per_byte
    return gather_rounds(hosts, ring=ring) * link.alpha_s + (hosts - 1) * num_bytes * per_byte


def quantized_all_reduce_s(link: Link, hosts: int, num_bytes: float, *, bits: int, ring: bool = False) -> float:
    """Seconds until every host has the sum of all, sent in q bits a value both ways.

    >>> quantized_all_reduce_s(Link(0.5, 0.25), 4, 1024, bits=4)  # 0.5 + 3 shards of 33 bytes; 2 rounds of 0.5, and 3 shards
    51.0
    """
    if hosts == 1:
        return 0.0
    sent, share = quantized_bytes(num_bytes, bits), (hosts - 1) / hosts
    scatter_s = link.alpha_s + share * (sent * link.beta_s_per_byte + num_bytes * link.gamma_s_per_byte)
    return scatter_s + gather_s(link, hosts, sent / hosts, ring=ring, added=False)


def pair_s(link: Link, num_bytes: float, hosts: int) -> float:
    """Seconds of an exchange of displacement and weights with one peer.

    >>> pair_s(Link(0.5, 0.25), 8, hosts=2)
    4.5
    """
    return exchange_s(link, 2 * num_bytes, degree=min(1, hosts - 1))


def streaming_s(step_s: float, exchange_s: float, *, every: float, delay: float, workers: int = 1, spread: float = 0.0) -> float:
    """Seconds of an update where one fragment's exchange begins every h updates and is applied some updates later.

    Args:
        step_s: c, that a worker computes.
        exchange_s: e, of one fragment.
        every: h = H/F, updates.
        delay: tau, updates; what is beyond h hides nothing more: then the next exchange begins.
        workers: p.
        spread: s, standard deviation over mean of the time to compute.

    Raises:
        UserError: If `step_s` or `every` is not above zero.

    >>> streaming_s(1.0, 3.0, every=5, delay=2), streaming_s(1.0, 3.0, every=5, delay=3)  # a second of three in five updates; none
    (1.2, 1.0)
    """
    check_positive("step_s", step_s)
    check_positive("every", every)
    hidden = min(delay, every)
    wait, lag = exchange_s / step_s - hidden, spread * expected_largest(workers)  # in updates
    best = 1.0
    if lag > 0 > wait:  # beyond m = 2 only where a step hides more than the exchange
        root = -wait / lag + math.hypot(wait / lag, math.sqrt(hidden))
        best = max(1.0, min((root * root + hidden) / every, 1e12) // 1)  # where the derivative by m is zero
    waits = ((lag * math.sqrt(max(m * every - hidden, 0.0)) + wait) / (m * every) for m in (best, best + 1))
    return step_s * (1 + max(0.0, *waits))
