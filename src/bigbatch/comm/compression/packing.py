"""Integers of a few bits in bytes: what compressors send. The first integer is in the lowest bits."""

import torch
from torch import Tensor


def packed_bytes(num_values: int, bits: int) -> int:
    """Bytes of so many integers of 2, 4, 8 or 12 bits.

    >>> packed_bytes(5, 4), packed_bytes(5, 2), packed_bytes(5, 12)
    (3, 2, 8)
    """
    return -(-num_values * bits // 8)


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack integers of 2, 4 or 8 bits along the last dimension.

    Args:
        values: uint8, each below 2**bits; shape (..., n).
        bits: Of one integer.

    Returns:
        uint8, shape (..., packed_bytes(n, bits)); unused bits of the last byte are zero.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()  # 1 + 16 * 2, 3
    [33, 3]
    """
    per_byte = 8 // bits
    if per_byte == 1:
        return values
    fields = torch.nn.functional.pad(values, (0, -values.shape[-1] % per_byte))
    fields = fields.view(*values.shape[:-1], -1, per_byte)
    packed: Tensor = fields[..., 0].clone()
    for i in range(1, per_byte):
        packed |= fields[..., i] << (bits * i)
    return packed


def unpack(packed: Tensor, num_values: int, bits: int) -> Tensor:
    """The first `num_values` integers of each row; the inverse of `pack`.

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 3, 4).tolist()
    [1, 2, 3]
    """
    per_byte = 8 // bits
    if per_byte == 1:
        return packed[..., :num_values]
    fields = torch.stack([(packed >> (bits * i)) & (2**bits - 1) for i in range(per_byte)], dim=-1)
    return fields.flatten(-2)[..., :num_values]


def pack_12_bits(values: Tensor) -> Tensor:
    """Pack integers from 0 to 4095, two in three bytes.

    Args:
        values: Of any integer type, shape (n,).

    Returns:
        uint8, shape (packed_bytes(n, 12),).

    >>> pack_12_bits(torch.tensor([0x321, 0x654])).tolist() == [0x21, 0x43, 0x65]
    True
    """
    low, high = torch.nn.functional.pad(values.int(), (0, len(values) % 2)).view(-1, 2).unbind(1)
    three = torch.stack([low & 255, low >> 8 | (high & 15) << 4, high >> 4], dim=1)
    return three.to(torch.uint8).flatten()[: packed_bytes(len(values), 12)]


def unpack_12_bits(packed: Tensor, num_values: int) -> Tensor:
    """The inverse of `pack_12_bits`: int64, shape (num_values,).

    >>> unpack_12_bits(torch.tensor([0x21, 0x43, 0x65], dtype=torch.uint8), 2).tolist() == [0x321, 0x654]
    True
    """
    first, middle, last = torch.nn.functional.pad(packed.long(), (0, -len(packed) % 3)).view(-1, 3).unbind(1)
    return torch.stack([first | (middle & 15) << 8, middle >> 4 | last << 4], dim=1).flatten()[:num_values]


def as_bytes(scales: Tensor) -> Tensor:
    """The bytes of float32 numbers along the last dimension."""
    return scales.contiguous().view(torch.uint8)


def from_bytes(payload: Tensor) -> Tensor:
    """The float32 numbers of these bytes; a copy, as they may start at any address."""
    return payload.clone(memory_format=torch.contiguous_format).view(torch.float32)
