r"""Quantised batch norm: an evaluated batch norm and the quantiser behind it as one multiplication, one addition and one shift of integers.

Paper:   Lin, Sun, Xie, Zhou, Zhang 2020, Optimal Quantization for Batch Normalization in Neural Network Deployments and Beyond,
         arXiv:2008.13128.
Formula: for the integer inputs X of a channel, lo <= X <= hi, of real value scale X + bias, and outputs of k bits in steps of `step`,
             a = gamma / sqrt(var + eps) scale / step          b = ((bias - mean) gamma / sqrt(var + eps) + beta) / step
             Y = clip(floor(a X + b + 1/2), 0, 2^k - 1)        wanted: a and b as float64 has them, all else in exact arithmetic
             Y = clip((A X + B) >> K, 0, 2^k - 1)              computed: integers A and B of the channel, one K for all channels
         A, B and the smallest K with which the two are equal for *every* X: see `integer_affine`. K <= 2 log2(hi - lo) + 2.6.
Units:   Y in levels; a level is `step` of the batch norm's output. The clip at 0 is the ReLU. The shift is arithmetic: it rounds down.
Differs: rebuilt from the paper's abstract (an affine map in fixed point, a shared scale, the same outputs); its theorems and algorithm were
         not at hand, so that the exact search, its proof and the bound on K are ours. Half-way values round up.
"""

from collections.abc import Callable
from fractions import Fraction
from math import floor
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.paper import Paper
from bigbatch.layers.integer_affine import Affine, Points, boundaries, exact_affines, largest_intermediate, share_scale

PAPER = Paper(
    method="Quantised batch norm",
    title="Optimal Quantization for Batch Normalization in Neural Network Deployments and Beyond",
    authors="Lin, Sun, Xie, Zhou, Zhang",
    year=2020,
    arxiv="2008.13128",
    where="abstract",
)
BatchNorm = nn.modules.batchnorm._BatchNorm


def check_bits(bits: int, least: int = 1) -> None:
    """Refuse numbers of bits outside `least`..16."""
    if not least <= bits <= 16:
        raise UserError(f"bits = {bits}: must lie from {least} to 16; 8 is usual")


def check_accumulator(accumulator: torch.dtype) -> None:
    """Refuse types in which A X + B is not computed."""
    if accumulator not in (torch.int32, torch.int64):
        raise UserError(f"accumulator = {accumulator}: must be torch.int32 or torch.int64; torch.int64 holds most")


def check_integers(input: Tensor) -> None:
    """Refuse tensors of other types than integers."""
    if input.is_floating_point() or input.is_complex() or input.dtype == torch.bool:
        raise UserError(f"input of {input.dtype}: must be of integers; round it first")


class Line(NamedTuple):
    """A folded batch norm: a X + b is its output in levels."""

    a: Tensor  # (C,), float64, levels per unit of X
    b: Tensor  # (C,), float64, levels


def fold_batch_norm(norm: BatchNorm, *, step: float, scale: float | Tensor = 1.0, bias: float | Tensor = 0.0) -> Line:
    """An evaluated batch norm of `scale X + bias`, in levels.

    Args:
        norm: In evaluation mode, with running statistics; C channels.
        step: Real value of one output level.
        scale: Real value of one unit of X, a number or (C,).
        bias: Added before the batch norm (a convolution's), real, a number or (C,).

    Returns:
        a and b, (C,), computed in float64.

    Raises:
        UserError: If the layer is in training mode, has no running statistics, or a channel's numbers are not finite.
    """
    check_positive("step", step, "give the real value of one output level")
    if norm.training:
        raise UserError("batch norm in training mode: its output depends on the batch; call model.eval() first")
    if norm.running_mean is None or norm.running_var is None:
        raise UserError("batch norm without running statistics: there is nothing to fold; train it with track_running_stats=True")
    mean, var = norm.running_mean.detach().double(), norm.running_var.detach().double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().double()
    ratio = gamma / (var + norm.eps).sqrt()
    line = Line(ratio * scale / step, ((bias - mean) * ratio + beta) / step)
    for c in (~(line.a.isfinite() & line.b.isfinite())).nonzero().flatten().tolist()[:1]:
        raise UserError(
            f"channel {c}: gamma = {gamma[c]:g}, beta = {beta[c]:g}, mean = {mean[c]:g}, var = {var[c]:g} and eps = {norm.eps:g} fold to "
            f"{line.a[c]:g} X + {line.b[c]:g}: must be finite; look for a diverged run, or raise eps"
        )
    return line


def exact_levels(X: Tensor, line: Line, *, bits: int) -> Tensor:
    """clip(floor(a X + b + 1/2), 0, 2^k - 1) in exact arithmetic: float64 where it is certain, rational numbers in the doubt.

    Args:
        X: Integers, of a shape that broadcasts with (C,).
        line: a and b.
        bits: k.

    Returns:
        Levels, int64.

    >>> line = Line(torch.tensor([0.5, 0.3], dtype=torch.float64), torch.tensor([0.0, 0.0], dtype=torch.float64))
    >>> exact_levels(torch.arange(6)[:, None], line, bits=8).T.tolist()  # 0.3 in float64 is less than 3/10: 5 * 0.3 is rounded down
    [[0, 1, 1, 2, 2, 3], [0, 0, 1, 1, 1, 1]]
    """
    top = 2**bits - 1
    y: Tensor = line.a * X + line.b + 0.5
    X, a, b = (t.expand_as(y) for t in (X, *line))
    error = 2.0**-50 * ((a * X).abs() + b.abs() + 1)
    doubtful = ~((y - y.round()).abs() > error) & ~(y + error < 0) & ~(y - error > top + 1)
    levels = y.nan_to_num().clamp(0, top).floor().long()
    for at in zip(*doubtful.nonzero(as_tuple=True), strict=True):
        exact = Fraction(a[at].item()) * int(X[at]) + Fraction(b[at].item()) + Fraction(1, 2)
        levels[at] = min(max(floor(exact), 0), top)
    return levels


def critical_points(line: Line, lo: Tensor, hi: Tensor, *, bits: int) -> list[tuple[Points, Points]]:
    """The `boundaries` of each channel: what is exact there is exact for every X in lo..hi, each (C,)."""
    rows = zip(line.a.tolist(), line.b.tolist(), lo.tolist(), hi.tolist(), strict=True)
    return [boundaries(a, b, low, high, bits=bits) for a, b, low, high in rows]


class QuantizedBatchNorm(nn.Module):
    """Batch norm, ReLU and quantiser in integers: (N, C) or (N, C, ...) in, levels 0..2^k - 1 out, of the accumulator's type.

    Built by `from_batch_norm`, or by hand for a `load_state_dict`. All of its state is integers.

    Args:
        num_features: C.
        bits: k, 1 to 16.
        accumulator: torch.int32 or torch.int64: the type in which A X + B is computed.

    Raises:
        UserError: If a setting is out of range.

    >>> norm = nn.BatchNorm1d(1, affine=False).eval()  # mean 0, var 1
    >>> layer = QuantizedBatchNorm.from_batch_norm(norm, lo=-8, hi=8, step=2.5, bits=2)
    >>> layer(torch.tensor([[-3], [1], [2], [3], [4], [5], [8]])).flatten().tolist(), int(layer.K)
    ([0, 0, 1, 1, 2, 2, 3], 3)
    """

    A: Tensor
    B: Tensor
    K: Tensor
    lo: Tensor
    hi: Tensor

    def __init__(self, num_features: int, *, bits: int = 8, accumulator: torch.dtype = torch.int64) -> None:
        super().__init__()
        check_bits(bits)
        check_accumulator(accumulator)
        self.bits = bits
        for name in ("A", "B", "lo", "hi"):
            self.register_buffer(name, torch.zeros(num_features, dtype=accumulator))
        self.register_buffer("K", torch.zeros((), dtype=accumulator))

    @classmethod
    def from_batch_norm(
        cls,
        norm: BatchNorm,
        *,
        lo: int | Tensor,
        hi: int | Tensor,
        step: float,
        bits: int = 8,
        scale: float | Tensor = 1.0,
        bias: float | Tensor = 0.0,
        accumulator: torch.dtype = torch.int64,
    ) -> "QuantizedBatchNorm":
        """Fold, search and prove that the accumulator holds every intermediate value.

        Args:
            norm: In evaluation mode, with running statistics; C channels.
            lo: Smallest input, an integer or (C,).
            hi: Largest input, an integer or (C,).
            step: Real value of one output level.
            bits: k, 1 to 16.
            scale: Real value of one unit of X, a number or (C,).
            bias: Added before the batch norm (a convolution's), real, a number or (C,).
            accumulator: torch.int32 or torch.int64.

        Raises:
            UserError: If the batch norm can't be folded, a range is empty, or the accumulator is too narrow for the shared scale.
        """
        layer = cls(norm.num_features, bits=bits, accumulator=accumulator)
        line = fold_batch_norm(norm, step=step, scale=scale, bias=bias)
        lo, hi = (torch.as_tensor(end, dtype=torch.int64).expand(norm.num_features) for end in (lo, hi))
        for c in (lo > hi).nonzero().flatten().tolist()[:1]:
            raise UserError(f"channel {c}: inputs from {lo[c]} to {hi[c]}: lo must not exceed hi; swap them")
        affines = share_scale(exact_affines(critical_points(line, lo, hi, bits=bits), bits=bits))
        check_fit(affines, lo.tolist(), hi.tolist(), accumulator)
        A, B, K = zip(*affines, strict=True)
        for buffer, value in ((layer.A, A), (layer.B, B), (layer.K, K[0]), (layer.lo, lo), (layer.hi, hi)):
            buffer.copy_(torch.as_tensor(value))
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Levels, of the input's shape.

        Raises:
            UserError: If the input is not of integers, or leaves the range for which exactness is proven.
        """
        check_integers(input)
        A, B, lo, hi = (t.view(-1, *[1] * (input.dim() - 2)) for t in (self.A, self.B, self.lo, self.hi))
        outside = (input < lo) | (input > hi)
        if outside.any():
            raise UserError(f"input {input[outside][0]}: outside the range that the layer was built for; build it with a wider lo..hi")
        return ((A * input.to(A.dtype)).add_(B) >> self.K).clamp_(0, 2**self.bits - 1)

    def extra_repr(self) -> str:
        """What the layer computes in, for `print(model)`."""
        return f"{len(self.A)}, bits={self.bits}, accumulator={self.A.dtype}, K={int(self.K)}"


def check_fit(affines: list[Affine], lo: list[int], hi: list[int], accumulator: torch.dtype) -> None:
    """Prove that X, A, B, A X and A X + B fit for every admissible X.

    Raises:
        UserError: Naming the first channel for which they don't, and the numbers.
    """
    limit = torch.iinfo(accumulator).max
    for c, (affine, low, high) in enumerate(zip(affines, lo, hi, strict=True)):
        if (largest := largest_intermediate(affine, low, high)) > limit:
            raise UserError(
                f"channel {c}: A = {affine.A}, B = {affine.B}, K = {affine.K} reach {largest:,} for X from {low} to {high}: {accumulator} "
                f"holds {limit:,}; take {'torch.int64' if accumulator == torch.int32 else 'fewer bits'}, or narrow the input range"
            )


class Mismatch(NamedTuple):
    """An input for which the layer is wrong."""

    channel: int
    X: int
    level: int
    wanted: int


def first_mismatch(layer: QuantizedBatchNorm, wanted: Callable[[Tensor], Tensor], *, block: int = 2**20) -> Mismatch | None:
    """Try every admissible input of every channel; None where all outputs are as wanted. The acceptance test; some 50 million a second.

    Args:
        layer: What is tested.
        wanted: (n, C) integers to (n, C) levels, such as `exact_levels`.
        block: Inputs to try at once.
    """
    lo, hi = layer.lo.long(), layer.hi.long()
    rows = max(1, block // len(lo))
    for start in range(int(lo.min()), int(hi.max()) + 1, rows):
        X = torch.arange(start, min(start + rows, int(hi.max()) + 1))[:, None].clamp(lo, hi)
        levels, right = layer(X), wanted(X)
        for n, c in (levels != right).nonzero().tolist()[:1]:
            return Mismatch(c, int(X[n, c]), int(levels[n, c]), int(right[n, c]))
    return None
