r"""Quantised mean: every rank sends 8 or 4 bits a value, twice, with error feedback on both ways (torch has no such hook).

Paper:   Tang, Lian, Yu, Zhang, Liu 2019, DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-Pass Error-Compensated
         Compression, arXiv:1905.05957, Algorithm 1.
Formula: for each bucket, on rank i of W, with errors delta_i and delta (initially 0),
             v_i     <- g_i + delta_i                       on each worker
             delta_i <- v_i - Q(v_i)                        and Q(v_i) is sent
             v       <- (1/W) sum_i Q(v_i) + delta          where they meet
             delta   <- v - Q(v)                            and Q(v) is sent to all, which use it as their mean gradient
         Q, on each block of consecutive values, with L = 127 (int8) or 7 (int4):
             s = max |v| / L;    Q(v) = s round(v / s)
Units:   s is in the units of g. A block sends its values in 8 or 4 bits each, and s as float32.
Differs: the paper's server is every rank in turn: rank j is the owner of the j-th of W shards (whole blocks; the vector is padded with
         zeros), gets it from all (all-to-all), and sends its mean to all (all-gather). So a rank sends 2 (W - 1) / W payloads, as a ring
         all-reduce does, whatever W is. The paper leaves Q open; here it is a symmetric grid on each block, rounding to nearest, ties to
         even. g may also be the displacement of a worker over several steps, for which Therien et al. 2025, MuLoCo: Muon is a Practical
         Inner Optimizer for DiLoCo, arXiv:2505.23725, showed quantisation with error feedback and float32 sums.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future

from bigbatch.comm.compression.background import Background, sum_in_order, used_here
from bigbatch.comm.compression.compressor import Compressor, redistribute_errors
from bigbatch.comm.compression.packing import as_bytes, from_bytes, pack, packed_bytes, unpack
from bigbatch.core.checks import UserError, unknown
from bigbatch.core.methods import COMPRESSIONS
from bigbatch.core.paper import Paper
from bigbatch.recipe.base import Count
from bigbatch.recipe.sections import CompressionSection

PAPER = Paper(
    method="Quantised mean with error feedback on both ways",
    title="DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-Pass Error-Compensated Compression",
    authors="Tang et al.",
    year=2019,
    arxiv="1905.05957",
    where="Algorithm 1",
)

BITS = {"int8": 8, "int4": 4}


def block_scales(blocks: Tensor, bits: int) -> Tensor:
    """Step s of each block's grid, float32: its largest magnitude over L = 2^(bits - 1) - 1.

    Args:
        blocks: Shape (..., block).
        bits: Of a value.

    Returns:
        Shape (...). Zero for a block of zeros, not finite for one that holds a value that is not.

    >>> block_scales(torch.tensor([[1.0, -3.5], [0.0, 0.0]]), 4)
    tensor([0.5000, 0.0000])
    """
    return blocks.abs().amax(-1).div(2 ** (bits - 1) - 1).float()


def encode(shards: Tensor, *, bits: int, block: int) -> Tensor:
    """What is sent of each shard: its values, then the scales of its blocks.

    Args:
        shards: float32 or float64, shape (shards, size), size a multiple of `block`.
        bits: Of a value, 8 or 4.
        block: Values that share a scale.

    Returns:
        uint8, shape (shards, payload_bytes(size)).

    >>> encode(torch.tensor([[1.0, -3.5]]), bits=4, block=2).tolist()  # 2 + 8 and -7 + 8 in one byte; 0.5 as float32
    [[26, 0, 0, 0, 63]]
    """
    blocks = shards.view(len(shards), -1, block)
    scales, levels = block_scales(blocks, bits), 2 ** (bits - 1) - 1
    steps = torch.where(scales == 0, 1, scales).to(blocks.dtype).unsqueeze(-1)
    values = (blocks / steps).round_().clamp_(-levels, levels).nan_to_num_(nan=0.0).add_(levels + 1)
    return torch.cat([pack(values.to(torch.uint8).flatten(-2), bits), as_bytes(scales)], dim=-1)


def decode(payload: Tensor, size: int, *, bits: int, block: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Q(v) of each shard, shape (shards, size): the values of `encode` times their scales.

    >>> decode(torch.tensor([[26, 0, 0, 0, 63]], dtype=torch.uint8), 2, bits=4, block=2)
    tensor([[ 1.0000, -3.5000]])
    """
    split = packed_bytes(size, bits)
    values = unpack(payload[:, :split], size, bits).to(dtype).sub_(2 ** (bits - 1))
    scales = from_bytes(payload[:, split:]).to(dtype)
    return (values.view(len(payload), -1, block) * scales.unsqueeze(-1)).flatten(1)


def shard_size(num_elements: int, world_size: int, block: int) -> int:
    """Values of a rank's shard, a multiple of the block; the last shards hold padding.

    >>> shard_size(1000, 3, 256), shard_size(1, 3, 256)  # four blocks, two for each rank
    (512, 256)
    """
    num_blocks = -(-num_elements // block)
    return -(-num_blocks // world_size) * block


def payload_bytes(size: int, *, bits: int, block: int) -> int:
    """Bytes of a shard of so many values, with its scales.

    >>> payload_bytes(512, bits=8, block=256), payload_bytes(512, bits=4, block=256)
    (520, 264)
    """
    return packed_bytes(size, bits) + 4 * (size // block)


class Quantized(Compressor):
    """Mean over ranks in 8 or 4 bits a value; see the module's docstring for the rule.

    The exchange runs beside the computation, in a process group of its own: all ranks must construct it in the same order, and call
    `comm_hook` in the same order. Errors and sums are in float32, or float64 for values of float64; all ranks get the same bits.

    Args:
        kind: "int8" or "int4".
        block: Values that share a scale. Smaller blocks quantise finer; each costs 4 bytes.
        error_feedback: Whether what quantisation leaves out is added to the next vector.

    Raises:
        UserError: If the kind is unknown, or the block is not above zero.
    """

    def __init__(self, kind: str = "int8", *, block: int = 256, error_feedback: bool = True) -> None:
        if kind not in BITS:
            raise UserError(unknown("kind of quantisation", kind, BITS))
        if block < 1:
            raise UserError(f"block = {block}: must be 1 or more; give the number of values that share a scale, say 256")
        self.error_feedback = error_feedback
        self._grid = {"bits": BITS[kind], "block": block}
        self._errors: dict[int, Tensor] = {}
        self._owner_errors: dict[int, Tensor] = {}
        self._background = Background()

    def comm_hook(self, bucket: GradBucket) -> Future[Tensor]:
        """Start the mean over ranks; the bucket's buffer is read before this returns, and not written to."""
        buffer, index = bucket.buffer(), bucket.index()
        vector = buffer.to(torch.float64 if buffer.dtype == torch.float64 else torch.float32, copy=True)
        return self._background.submit(lambda: self._mean(vector, index).to(buffer.dtype), buffer.device)

    def _mean(self, v: Tensor, index: int) -> Tensor:
        world_size, num_elements, dtype = self._background.world_size, v.numel(), v.dtype
        size = shard_size(num_elements, world_size, self._grid["block"])
        v = torch.nn.functional.pad(_plus(used_here(v), self._errors.get(index)), (0, world_size * size - num_elements))
        payload = encode(v.view(world_size, size), **self._grid)
        if self.error_feedback:
            self._errors[index] = (v - decode(payload, size, **self._grid, dtype=dtype).flatten())[:num_elements].clone()
        shards = decode(self._background.all_to_all(payload), size, **self._grid, dtype=dtype)
        shard = _plus(sum_in_order(shards) / world_size, self._owner_errors.get(index))
        payload = encode(shard[None], **self._grid)
        if self.error_feedback:
            self._owner_errors[index] = shard - decode(payload, size, **self._grid, dtype=dtype)[0]
        return decode(self._background.all_gather(payload[0]), size, **self._grid, dtype=dtype).flatten()[:num_elements]

    def state_dict(self) -> dict[str, dict[int, Tensor]]:
        """The errors of this rank, and those of the shards that it owns, by bucket; waits for exchanges that were started."""
        self._background.flush()
        return {"errors": dict(self._errors), "owner_errors": dict(self._owner_errors)}

    def load_state_dicts(self, states: list[dict[str, dict[int, Tensor]]], rank: int, world_size: int) -> None:
        """Load this rank's errors, and those of its shard.

        With another world size, shards are others: the errors of all old owners are put together and cut anew. They are errors of the mean,
        not of one rank's vector, so each value stays what it was.
        """
        if not states[0]:
            return
        self._background.flush()
        self._errors = redistribute_errors([state["errors"] for state in states], rank, world_size)
        if len(states) == world_size:
            self._owner_errors = dict(states[rank]["owner_errors"])
            return
        self._owner_errors = {}
        for index, error in states[0]["errors"].items():
            size = shard_size(error.numel(), world_size, self._grid["block"])
            whole = torch.cat([state["owner_errors"][index] for state in states])[: error.numel()]
            self._owner_errors[index] = torch.nn.functional.pad(whole, (0, world_size * size - error.numel())).view(world_size, size)[rank]

    def sent_bytes(self, num_elements: int, element_size: int, world_size: int) -> float:  # noqa: ARG002
        """2 (W - 1) payloads of a shard, with its scales and its padding."""
        size = shard_size(num_elements, world_size, self._grid["block"])
        return 2.0 * (world_size - 1) * payload_bytes(size, **self._grid)


def _plus(vector: Tensor, error: Tensor | None) -> Tensor:
    return vector if error is None or error.shape != vector.shape else vector + used_here(error)


class QuantizedSection(CompressionSection):
    """Gradients are exchanged in 8 or 4 bits a value, with error feedback."""

    kind: Literal["int8", "int4"] = "int8"
    block: Count = 256  # values that share a scale
    error_feedback: bool = True


@COMPRESSIONS.register("int8", QuantizedSection)
@COMPRESSIONS.register("int4", QuantizedSection)
def build(c: QuantizedSection, *_: Any) -> Quantized:
    """The recipe's compressor."""
    return Quantized(c.kind, block=c.block, error_feedback=c.error_feedback)
