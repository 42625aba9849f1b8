r"""SparseLoCo: of every chunk the largest values, in 2 bits each, with error feedback that decays.

Paper:   Sarfi, Therien, Lidin, Belilovsky 2025, Communication Efficient LLM Pre-training with SparseLoCo, arXiv:2508.15706, Algorithm 1.
Formula: for each bucket, on rank i of W, with error e_i (initially 0) and v_i the displacement of a worker over its local steps,
             e_i <- decay e_i + v_i
             c_i  = Q(Top-k(e_i))       of every chunk of values
             e_i <- e_i - c_i
             v    = (1/W) sum_i c_i
         Q, on the k values x of a chunk in descending order of magnitude: the first j become +-a, the others +-b, with their signs, at
         the least squared error that two magnitudes can have,
             a(j) = mean of the first j |x|,    b(j) = mean of the others,    j = argmax j a(j)^2 + (k - j) b(j)^2
Units:   chunk and top in values; a and b in the units of v. A value sends 12 bits of index and 2 bits of level, a chunk its a and b as
         float32: 120 bytes for 64 of 4,096 values.
Differs: chunks are of 4,096 consecutive values of the flat vector; the paper's are blocks of 64 x 64 of a matrix. The last, smaller
         chunk sends the same share of its values, at least one. The choice of the four levels is ours; a and b are free, since in a chunk
         with few values that are not zero one scale for both would shrink those. v may be a gradient as well, which is the paper's rule
         with one local step. The outer step is the caller's.
"""

from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from bigbatch.comm.compression.background import Background, used_here
from bigbatch.comm.compression.compressor import Compressor, redistribute_errors
from bigbatch.comm.compression.packing import as_bytes, from_bytes, pack, pack_12_bits, packed_bytes, unpack, unpack_12_bits
from bigbatch.core.checks import UserError, check_fraction
from bigbatch.core.methods import COMPRESSIONS
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Count, Fraction
from bigbatch.recipe.sections import CompressionSection

PAPER = Paper(
    method="SparseLoCo: the largest of every chunk in 2 bits",
    title="Communication Efficient LLM Pre-training with SparseLoCo",
    authors="Sarfi, Therien, Lidin, Belilovsky",
    year=2025,
    arxiv="2508.15706",
    where="Algorithm 1",
)

MOST = 4096
"""Values of a chunk: an index has 12 bits."""


def num_sent(num_elements: int, *, chunk: int, top: int) -> int:
    """How many values of a chunk of `num_elements` are sent: `top` of a whole one, the same share of a smaller one, at least one.

    >>> num_sent(4096, chunk=4096, top=64), num_sent(1000, chunk=4096, top=64), num_sent(10, chunk=4096, top=64)
    (64, 16, 1)
    """
    return max(1, round(top * num_elements / chunk))


class Magnitudes(NamedTuple):
    """The two magnitudes of each chunk."""

    pair: Tensor  # a and b of each chunk, float32, shape (chunks, 2); not finite where a value is not
    num_large: Tensor  # j, int64, shape (chunks, 1)


def two_magnitudes(x: Tensor) -> Magnitudes:
    """Magnitudes a and b, and how many values get a, at the least squared error.

    Args:
        x: Magnitudes of the values of each chunk, in descending order; shape (chunks, k).

    >>> two_magnitudes(torch.tensor([[5.0, 4.0, 1.0]]))  # 4.5 twice, and 1
    Magnitudes(pair=tensor([[4.5000, 1.0000]]), num_large=tensor([[2]]))
    """
    k = x.shape[1]
    j = torch.arange(1, k + 1, device=x.device, dtype=x.dtype)
    a = x.cumsum(1) / j
    b = torch.nn.functional.pad(x.flip(1).cumsum(1)[:, :-1].flip(1) / j[:-1].flip(0), (0, 1))  # nothing is left for j = k
    largest = torch.where(x[:, :1] == 0, 1, x[:, :1])  # so that squares neither overflow nor underflow
    best = (j * (a / largest).square() + (k - j) * (b / largest).square()).argmax(1, keepdim=True)
    return Magnitudes(torch.cat([a.gather(1, best), b.gather(1, best)], dim=1).float(), best + 1)


def encode(chunks: Tensor, k: int) -> Tensor:
    """What is sent of chunks of one size: indices, levels, magnitudes.

    Args:
        chunks: float32 or float64, shape (chunks, size), size at most 4,096.
        k: Values that are sent of each.

    Returns:
        uint8, flat; see `payload_bytes`.
    """
    index = torch.topk(chunks.abs(), k, dim=1, sorted=True).indices
    values = chunks.gather(1, index)
    pair, num_large = two_magnitudes(values.abs())
    is_small = torch.arange(k, device=chunks.device) >= num_large
    levels = (values < 0).to(torch.uint8) | is_small.to(torch.uint8) << 1
    return torch.cat([pack_12_bits(index.flatten()), pack(levels.flatten(), 2), as_bytes(pair.flatten())])


def decode(payload: Tensor, num_chunks: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Indices and values that `encode` packed, each of shape (chunks, k)."""
    num = num_chunks * k
    ends = packed_bytes(num, 12), packed_bytes(num, 12) + packed_bytes(num, 2)
    index = unpack_12_bits(payload[: ends[0]], num).view(num_chunks, k)
    levels = unpack(payload[ends[0] : ends[1]], num, 2).view(num_chunks, k)
    values = from_bytes(payload[ends[1] :]).to(dtype).view(num_chunks, 2).gather(1, (levels >> 1).long())
    return index, torch.where(levels % 2 == 1, -values, values)


def payload_bytes(num_chunks: int, k: int) -> int:
    """Bytes of chunks of which k values are sent each.

    >>> payload_bytes(1, 64)  # 96 of indices, 16 of levels, 8 of magnitudes: 15 bits a value
    120
    """
    return packed_bytes(num_chunks * k, 12) + packed_bytes(num_chunks * k, 2) + 8 * num_chunks


class SparseLoCo(Compressor):
    """Sparse mean over ranks in 2 bits a value; see the module's docstring for the rule.

    The exchange runs beside the computation, in a process group of its own: all ranks must construct it in the same order, and call
    `comm_hook` in the same order. Errors and sums are in float32, or float64 for values of float64; all ranks get the same bits.

    Args:
        chunk: Consecutive values of which the largest are sent, at most 4,096.
        top: How many of a chunk.
        decay: Of the error, from one exchange to the next.

    Raises:
        UserError: If a value is out of range.
    """

    def __init__(self, *, chunk: int = MOST, top: int = 64, decay: float = 0.95) -> None:
        if not 1 <= chunk <= MOST:
            raise UserError(f"chunk = {chunk}: must lie from 1 to {MOST}, as an index has 12 bits; give {MOST}, as in the paper")
        if not 1 <= top <= chunk:
            raise UserError(f"top = {top}: must lie from 1 to chunk = {chunk}; give a small part of the chunk, such as 64 of {MOST}")
        check_fraction("decay", decay)
        self.chunk, self.top, self.decay = chunk, top, decay
        self._errors: dict[int, Tensor] = {}
        self._background = Background()

    def comm_hook(self, bucket: GradBucket) -> Future[Tensor]:
        """Start the mean over ranks; the bucket's buffer is read before this returns, and not written to."""
        buffer, index = bucket.buffer(), bucket.index()
        vector = buffer.to(torch.float64 if buffer.dtype == torch.float64 else torch.float32, copy=True)
        return self._background.submit(lambda: self._mean(vector, index).to(buffer.dtype), buffer.device)

    def _mean(self, v: Tensor, index: int) -> Tensor:
        e, error = used_here(v), self._errors.get(index)
        if error is not None and error.shape == v.shape:
            e = self.decay * used_here(error) + v
        parts = self._parts(v.numel())
        payloads = [encode(e[start:stop].view(num_chunks, -1), k) for start, stop, num_chunks, k in parts]
        gathered = self._background.all_gather(torch.cat(payloads))
        self._errors[index] = e.index_add(0, *self._decode(torch.cat(payloads), parts, v.dtype), alpha=-1)
        total = torch.zeros_like(v)
        for payload in gathered:  # in the order of ranks: the same sum on every rank
            total.index_add_(0, *self._decode(payload, parts, v.dtype))
        return total / len(gathered)

    def _parts(self, num_elements: int) -> list[tuple[int, int, int, int]]:
        """Whole chunks together, then the smaller one: start, stop, number of chunks, values sent of each."""
        whole = num_elements // self.chunk
        parts = [(0, whole * self.chunk, whole, self.top)] if whole else []
        if rest := num_elements % self.chunk:
            parts.append((num_elements - rest, num_elements, 1, num_sent(rest, chunk=self.chunk, top=self.top)))
        return parts

    def _decode(self, payload: Tensor, parts: list[tuple[int, int, int, int]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Places in the flat vector, and values, of all that a rank sent."""
        places, sent, begin = [], [], 0
        for start, _, num_chunks, k in parts:
            end = begin + payload_bytes(num_chunks, k)
            index, values = decode(payload[begin:end], num_chunks, k, dtype)
            begin = end
            starts = start + self.chunk * torch.arange(num_chunks, device=index.device)
            places.append((index + starts.unsqueeze(1)).flatten())
            sent.append(values.flatten())
        return torch.cat(places), torch.cat(sent)

    def state_dict(self) -> dict[str, dict[int, Tensor]]:
        """The errors, by bucket; waits for exchanges that were started."""
        self._background.flush()
        return {"errors": dict(self._errors)}

    def load_state_dicts(self, states: list[dict[str, dict[int, Tensor]]], rank: int, world_size: int) -> None:
        """Load this rank's errors."""
        self._background.flush()
        if states[0]:
            self._errors = redistribute_errors([state["errors"] for state in states], rank, world_size)

    def sent_bytes(self, num_elements: int, element_size: int, world_size: int) -> float:  # noqa: ARG002
        """(W - 1) payloads, along a ring."""
        return (world_size - 1.0) * sum(payload_bytes(num_chunks, k) for _, _, num_chunks, k in self._parts(num_elements))


class SparseLoCoSection(CompressionSection):
    """Of every chunk the largest gradients are exchanged, in 2 bits each, with error feedback that decays."""

    kind: Literal["sparse_loco"] = "sparse_loco"
    chunk: Annotated[int, Field(gt=0, le=MOST)] = MOST
    top: Count = 64  # values of a chunk that are sent
    decay: Fraction = 0.95  # of the error, from one exchange to the next

    @model_validator(mode="after")
    def _top_in_chunk(self) -> Self:
        if self.top > self.chunk:
            raise ValueError(f"top = {self.top}: must be at most chunk = {self.chunk}; give a small part of it, such as 64 of {MOST}")
        return self


@COMPRESSIONS.register("sparse_loco", SparseLoCoSection)
def build(c: SparseLoCoSection, *_: Any) -> SparseLoCo:
    """The recipe's compressor."""
    return SparseLoCo(chunk=c.chunk, top=c.top, decay=c.decay)
