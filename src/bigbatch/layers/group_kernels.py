"""Batch norm over groups of samples in two launches forward and two backward, whatever the number of groups; Triton, for CUDA.

Channels, groups and stretches of a group are shared out over programs, which read the input where it lies: contiguous or channels-last.
Forward, each program sums (x - shift) and (x - shift)^2 over its stretch, shift being the first value of the channel in it, so that a mean
far from zero costs no precision. The second launch merges the stretches of a group by Chan's formula, in order, and normalises. Backward
sums dy and dy x^ likewise. There are no atomics: the same input gives the same bits.

Memory traffic is that of torch's batch norm: x twice and y once forward, x and dy twice and dx once backward.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from bigbatch.core.hardware.kernels import OPTIONS

TILE = 1024
"""Elements that a program holds at once."""
PROGRAMS = 1024
"""Programs in a launch, about: several for each multiprocessor."""


@triton.jit
def _place(program, group, num_samples, num_groups, channels, positions, splits, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of a program: its split and group, the group's first sample, rows, and rows of a split, the program's own rows, its channels.

    A row is a sample and a position.
    """
    channel_blocks = tl.cdiv(channels, CHANNELS)
    block = program % channel_blocks
    k = (program // channel_blocks) % num_groups
    split = program // (channel_blocks * num_groups)
    first = (k * group).to(tl.int64)
    samples = tl.where(k == num_groups - 1, num_samples - k * group, group)
    rows = samples * positions
    length = tl.cdiv(tl.cdiv(rows, splits), ROWS) * ROWS
    begin = tl.minimum(split * length, rows)
    end = tl.minimum(begin + length, rows)
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    return split, k, first, rows, length, begin, end, c


@triton.jit
def _offsets(row, first, positions, c, sample_stride, channel_stride, position_stride):
    n = first + row // positions
    s = (row % positions).to(tl.int64)
    return (n * sample_stride + s * position_stride)[:, None] + (c.to(tl.int64) * channel_stride)[None, :]


@triton.jit
def sum_up(
    x, partial, group, num_samples, num_groups, channels, positions, splits, xn, xc, xs, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Mean and sum of squared deviations of each stretch; `partial` is (2, splits, groups, channels)."""
    split, k, first, _, _, begin, end, c = _place(
        tl.program_id(0), group, num_samples, num_groups, channels, positions, splits, ROWS, CHANNELS
    )
    inside = c < channels
    head = begin + tl.zeros([1], tl.int32)
    shift = tl.load(x + _offsets(head, first, positions, c, xn, xc, xs), mask=inside[None, :] & (head < end)[:, None], other=0.0).to(
        tl.float32
    )
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        value = tl.load(x + _offsets(row, first, positions, c, xn, xc, xs), mask=mask, other=0.0).to(tl.float32)
        d = tl.where(mask, value - shift, 0.0)
        sums += d
        squares += d * d
    count = tl.maximum(end - begin, 1).to(tl.float32)
    total = tl.sum(sums, 0)
    place = (split * num_groups + k) * channels + c
    size = splits * num_groups * channels
    tl.store(partial + place, tl.sum(shift, 0) + total / count, mask=inside)
    tl.store(partial + size + place, tl.sum(squares, 0) - total * total / count, mask=inside)


@triton.jit
def normalise(
    x, y, partial, statistics, weight, bias, group, num_samples, num_groups, channels, positions, splits, xn, xc, xs, yn, yc, ys, eps,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Merge the stretches of a group and normalise; `statistics` is (3, groups, channels): mean, 1 / std, biased variance."""
    split, k, first, rows, length, begin, end, c = _place(
        tl.program_id(0), group, num_samples, num_groups, channels, positions, splits, ROWS, CHANNELS
    )
    inside = c < channels
    size = splits * num_groups * channels
    mean = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    seen = 0.0
    for other in range(splits):
        place = (other * num_groups + k) * channels + c
        count = (tl.minimum((other + 1) * length, rows) - tl.minimum(other * length, rows)).to(tl.float32)
        together = tl.maximum(seen + count, 1.0)
        delta = tl.load(partial + place, mask=inside, other=0.0) - mean
        mean += tl.where(count > 0, delta * (count / together), 0.0)
        between = tl.where(count > 0, delta * delta * (seen * count / together), 0.0)
        squares += tl.load(partial + size + place, mask=inside, other=0.0) + between
        seen += count
    variance = tl.maximum(squares, 0.0) / rows.to(tl.float32)
    inverse_std = 1.0 / tl.sqrt(variance + eps)
    if split == 0:
        place = k * channels + c
        tl.store(statistics + place, mean, mask=inside)
        tl.store(statistics + num_groups * channels + place, inverse_std, mask=inside)
        tl.store(statistics + 2 * num_groups * channels + place, variance, mask=inside)
    scale = inverse_std
    if HAS_WEIGHT:
        scale = scale * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    shift = tl.zeros([CHANNELS], tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        value = tl.load(x + _offsets(row, first, positions, c, xn, xc, xs), mask=mask, other=0.0).to(tl.float32)
        out = (value - mean[None, :]) * scale[None, :] + shift[None, :]
        tl.store(y + _offsets(row, first, positions, c, yn, yc, ys), out.to(y.dtype.element_ty), mask=mask)


@triton.jit
def follow(
    running_mean, running_var, statistics, tracked, group, num_samples, num_groups, channels, positions, momentum,
    AVERAGE: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Take the statistics of the groups into the running ones, group after group; `tracked` counts them already."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    mean = tl.load(running_mean + c, mask=inside, other=0.0).to(tl.float32)
    var = tl.load(running_var + c, mask=inside, other=0.0).to(tl.float32)
    for k in range(num_groups):
        weight = momentum
        if AVERAGE:
            weight = 1.0 / (tl.load(tracked) - num_groups + k + 1).to(tl.float32)
        rows = (tl.where(k == num_groups - 1, num_samples - k * group, group) * positions).to(tl.float32)
        place = k * channels + c
        new_mean = tl.load(statistics + place, mask=inside, other=0.0)
        new_var = tl.load(statistics + 2 * num_groups * channels + place, mask=inside, other=0.0) * (rows / (rows - 1.0))
        mean += weight * (new_mean - mean)
        var += weight * (new_var - var)
    tl.store(running_mean + c, mean.to(running_mean.dtype.element_ty), mask=inside)
    tl.store(running_var + c, var.to(running_var.dtype.element_ty), mask=inside)


@triton.jit
def _of_group(statistics, k, num_groups, channels, c, inside):
    """Mean and 1 / std of a group."""
    mean = tl.load(statistics + k * channels + c, mask=inside, other=0.0)
    return mean, tl.load(statistics + (num_groups + k) * channels + c, mask=inside, other=0.0)


@triton.jit
def sum_up_gradient(
    x, dy, partial, statistics, group, num_samples, num_groups, channels, positions, splits, xn, xc, xs, dn, dc, ds,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Sums of dy and of dy x^ over each stretch; `partial` is (2, splits, groups, channels)."""
    split, k, first, _, _, begin, end, c = _place(
        tl.program_id(0), group, num_samples, num_groups, channels, positions, splits, ROWS, CHANNELS
    )
    inside = c < channels
    mean, inverse_std = _of_group(statistics, k, num_groups, channels, c, inside)
    sums = tl.zeros([ROWS, CHANNELS], tl.float32)
    products = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        value = tl.load(x + _offsets(row, first, positions, c, xn, xc, xs), mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(dy + _offsets(row, first, positions, c, dn, dc, ds), mask=mask, other=0.0).to(tl.float32)
        sums += slope
        products += slope * ((value - mean[None, :]) * inverse_std[None, :])
    place = (split * num_groups + k) * channels + c
    tl.store(partial + place, tl.sum(sums, 0), mask=inside)
    tl.store(partial + splits * num_groups * channels + place, tl.sum(products, 0), mask=inside)


@triton.jit
def gradient(
    x, dy, dx, partial, statistics, weight, group, num_samples, num_groups, channels, positions, splits,
    xn, xc, xs, dn, dc, ds, gn, gc, gs, HAS_WEIGHT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The gradient dx = gamma / std (dy - mean of dy - x^ mean of dy x^), of each group."""
    _, k, first, rows, _, begin, end, c = _place(
        tl.program_id(0), group, num_samples, num_groups, channels, positions, splits, ROWS, CHANNELS
    )
    inside = c < channels
    mean, inverse_std = _of_group(statistics, k, num_groups, channels, c, inside)
    sums = tl.zeros([CHANNELS], tl.float32)
    products = tl.zeros([CHANNELS], tl.float32)
    for other in range(splits):
        place = (other * num_groups + k) * channels + c
        sums += tl.load(partial + place, mask=inside, other=0.0)
        products += tl.load(partial + splits * num_groups * channels + place, mask=inside, other=0.0)
    sums = sums / rows.to(tl.float32)
    products = products / rows.to(tl.float32)
    scale = inverse_std
    if HAS_WEIGHT:
        scale = scale * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        value = tl.load(x + _offsets(row, first, positions, c, xn, xc, xs), mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(dy + _offsets(row, first, positions, c, dn, dc, ds), mask=mask, other=0.0).to(tl.float32)
        normal = (value - mean[None, :]) * inverse_std[None, :]
        out = scale[None, :] * (slope - sums[None, :] - normal * products[None, :])
        tl.store(dx + _offsets(row, first, positions, c, gn, gc, gs), out.to(dx.dtype.element_ty), mask=mask)


class Shape(NamedTuple):
    """What all kernels are told of an input of (samples, channels, positions)."""

    group: int  # samples in each group but the last
    num_samples: int
    num_groups: int
    channels: int
    positions: int
    splits: int  # stretches of a group
    rows: int  # of a tile
    width: int  # channels of a tile

    @classmethod
    def of(cls, x: Tensor, sizes: list[int]) -> "Shape":
        """Of an input as `three_axes` gives it."""
        return _shape_of(x.shape, x.stride(1) < x.stride(2), sizes[0], sizes[-1], len(sizes))

    @property
    def grid(self) -> tuple[int]:
        """Programs of a launch."""
        return (triton.cdiv(self.channels, self.width) * self.num_groups * self.splits,)

    def partial(self, x: Tensor) -> Tensor:
        """Room for two sums of each stretch."""
        return torch.empty(2, self.splits, self.num_groups, self.channels, device=x.device, dtype=torch.float32)


@lru_cache(256)
def _shape_of(shape: tuple[int, ...], channels_last: bool, group: int, last: int, num_groups: int) -> Shape:
    num_samples, channels, positions = shape
    width = min(64, triton.next_power_of_2(channels)) if channels_last or positions == 1 else 1
    most = max(group, last) * positions
    rows = min(max(TILE // width, 1), triton.next_power_of_2(most))
    programs = num_groups * triton.cdiv(channels, width)
    splits = max(1, min(PROGRAMS // programs, triton.cdiv(most, rows)))
    return Shape(group, num_samples, num_groups, channels, positions, splits, rows, width)


def three_axes(x: Tensor) -> Tensor:
    """(N, C, positions) of (N, C, ...)."""
    return x.unsqueeze(-1) if x.ndim == 2 else x.flatten(2)


def forward(input: Tensor, weight: Tensor | None, bias: Tensor | None, sizes: list[int], eps: float) -> tuple[Tensor, Tensor]:
    """The normalised input and its statistics, (3, groups, channels): mean, 1 / std and biased variance."""
    output = torch.empty_like(input)
    x, y = three_axes(input), three_axes(output)
    shape = Shape.of(x, sizes)
    partial = shape.partial(x)
    statistics = torch.empty(3, shape.num_groups, shape.channels, device=x.device, dtype=torch.float32)
    tile: dict[str, Any] = {"ROWS": shape.rows, "CHANNELS": shape.width, **OPTIONS}
    given = {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}
    with torch.cuda.device_of(x):
        sum_up[shape.grid](x, partial, *shape[:6], *x.stride(), **tile)
        normalise[shape.grid](x, y, partial, statistics, weight, bias, *shape[:6], *x.stride(), *y.stride(), eps, **given, **tile)
    return output, statistics


def update_running(
    mean: Tensor, var: Tensor, tracked: Tensor, momentum: float | None, statistics: Tensor, sizes: list[int], positions: int
) -> None:
    """One running update for each group, in order; `momentum` None: the average over all groups, `tracked` of them with these."""
    _, num_groups, channels = statistics.shape
    width = min(128, triton.next_power_of_2(channels))
    shape = (sizes[0], sum(sizes), num_groups, channels, positions)
    with torch.cuda.device_of(mean):
        follow[(triton.cdiv(channels, width),)](
            mean, var, statistics, tracked, *shape, float(momentum or 0.0), AVERAGE=momentum is None, CHANNELS=width, **OPTIONS
        )


def backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, statistics: Tensor, sizes: list[int], *, of_input: bool, of_parameters: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and, as (2, channels), of beta and gamma."""
    x, dy = three_axes(input), three_axes(grad)
    shape = Shape.of(x, sizes)
    partial = shape.partial(x)
    tile: dict[str, Any] = {"ROWS": shape.rows, "CHANNELS": shape.width, **OPTIONS}
    grad_input = None
    with torch.cuda.device_of(x):
        sum_up_gradient[shape.grid](x, dy, partial, statistics, *shape[:6], *x.stride(), *dy.stride(), **tile)
        if of_input:
            grad_input = torch.empty_like(input)
            dx = three_axes(grad_input)
            strides = (*x.stride(), *dy.stride(), *dx.stride())
            gradient[shape.grid](x, dy, dx, partial, statistics, weight, *shape[:6], *strides, HAS_WEIGHT=weight is not None, **tile)
    return grad_input, partial.flatten(1, 2).sum(1) if of_parameters else None


def try_out(device: torch.device) -> None:
    """Run all kernels on a small input, and compare with torch's batch norm on the CPU.

    Raises:
        ArithmeticError: If they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [4, 4, 3]
    x, slope = torch.randn(2, sum(sizes), 5, 3, 3, generator=generator)
    weight, bias = torch.rand(2, 5, generator=generator)
    mean, var, tracked = torch.zeros(5), torch.ones(5), torch.tensor(len(sizes))
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [t.clone().requires_grad_() for t in (x + 2, weight, bias)]
        groups = inputs[0].split(sizes)
        want = torch.cat([F.batch_norm(group, mean, var, inputs[1], inputs[2], training=True) for group in groups])
        wanted = [want.detach(), mean, var, *torch.autograd.grad(want, inputs, slope)]
    input, weight, bias, grad = (t.detach().to(device) for t in (*inputs, slope))
    mean, var, tracked = torch.zeros(5, device=device), torch.ones(5, device=device), tracked.to(device)
    output, statistics = forward(input, weight, bias, sizes, 1e-5)
    update_running(mean, var, tracked, 0.1, statistics, sizes, 9)
    grad_input, sums = backward(grad, input, weight, statistics, sizes, of_input=True, of_parameters=True)
    assert grad_input is not None
    assert sums is not None
    for got, expected in zip((output, mean, var, grad_input, sums[1], sums[0]), wanted, strict=True):
        if not torch.allclose(got.cpu(), expected, rtol=1e-3, atol=1e-4):
            raise ArithmeticError(f"off by {(got.cpu() - expected).abs().max():.2g}")
