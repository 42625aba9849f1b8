r"""Compression: how many bytes leave in place of b.

    fp16            b / 2
    PowerSGD, rank r: a matrix of m x n sends r (m + n) numbers in two all-reduces (P, then Q); vectors go whole, in one more
    top-k: 8 bytes (index and value) for each of k elements of each host, gathered by all

Of tensors without a shape (a number of bytes alone), PowerSGD's ratio is that of its paper's ResNet-18 (Vogels et al. 2019, rank 4): 72.
"""

from collections.abc import Iterable
from math import prod

from bigbatch.core.checks import check_fraction, check_positive
from bigbatch.simulate.link import Link
from bigbatch.simulate.outer import gather_s

POWERSGD_ALL_REDUCES = 3
"""Vectors, P and Q, each its own."""


def powersgd_bytes(shapes: Iterable[tuple[int, ...]], rank: int, element_bytes: int = 4) -> int:
    """Bytes that PowerSGD sends for tensors of these shapes; a tensor of more than two axes is a matrix of its first one and the rest.

    Raises:
        UserError: If the rank is not above zero.

    >>> powersgd_bytes([(256, 784), (256,), (10, 256), (10,)], rank=4)  # 4 (256 + 784) + 256 + 4 (10 + 256) + 10 numbers
    21960
    """
    check_positive("rank", rank)
    numbers = 0
    for shape in shapes:
        rows, columns = shape[0] if shape else 1, prod(shape[1:])
        low = min(rank, rows, columns) * (rows + columns)
        numbers += low if len(shape) > 1 and low < rows * columns else rows * columns
    return numbers * element_bytes


def top_k_bytes(num_bytes: float, share: float) -> float:
    """Bytes of what a host keeps: an index and a value of 4 bytes each.

    Raises:
        UserError: If the share is out of range.

    >>> top_k_bytes(400, 0.01)
    8.0
    """
    check_fraction("share", share)
    return 2 * share * num_bytes


def top_k_s(link: Link, num_bytes: float, *, hosts: int, share: float, ring: bool = True) -> float:
    """Seconds of gathering what each host keeps.

    Args:
        link: Between neighbours.
        num_bytes: Of the gradient, 4 an element.
        hosts: n.
        share: k over the number of elements.
        ring: Whether it goes along a ring (gloo's), n - 1 messages; else by doubling, lg n of them, and as many bytes.

    Raises:
        UserError: If the share is out of range.

    >>> top_k_s(Link(0.5, 0.25), 400, hosts=4, share=0.01)  # 3 messages of one index and one value
    7.5
    """
    return gather_s(link, hosts, top_k_bytes(num_bytes, share), ring=ring)
