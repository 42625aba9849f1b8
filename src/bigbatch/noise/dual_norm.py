r"""The noise scale in the norm of the optimizer: how far its next step gets, with this batch and with a larger one.

Paper:   Naganuma et al. 2026, Adaptive Batch Sizes Using Non-Euclidean Gradient Noise Scales for Stochastic Sign and Spectral Descent,
         arXiv:2602.03001. Theirs is `plug_in`: from R mean gradients g_j over n samples each,
             sign, Adam:  B = |sigma|_1^2 / |g|_1^2         Muon:  B = |C_row^(1/2)|_S1^2 / |G|_S1^2         (nuclear norms)
Formula: a method steps along s(g), the direction in the unit ball of its norm along which a gradient g rises most:
             l1 (sign methods, Adam)  sign(g)       nuclear (Muon)  U V' of each matrix U S V'       euclidean  g / |g|
         With K >= 3 groups of n samples, their mean gradients g_j, and o_j the mean of all samples but the group's, N - n of them,
             D1 = mean_j <o_j, s(g_j)>,  b1 = n             D2 = mean_j <g_j, s(o_j)>,  b2 = N - n
         are unbiased for any distribution: E D(b) = <g, E s(mean of b samples)>, the progress of a step of unit length with a batch of b,
         which rises to the dual norm |g|*. With 1 / D(b)^2 = (1 + B / b) / |g|*^2 as the model, and p and q the products of D1 and of D2
         of two looks that share no samples (E p = D(b1)^2),
             noise = q - p          signal = p / b1 - q / b2          B = noise / signal: a ratio of means over looks
         With a batch of B the squared progress of a step is half of what an infinite batch has, as far as the model holds.
Units:   samples, in B.
Differs: the paper's |g|_1 is that of the mean gradient, which noise makes longer: where noise rules, plug_in is (pi / 2) times the whole
         batch whatever the truth is. No estimator of |mu| is unbiased (Cai and Low 2011, Annals of Statistics 39(2)), but the progress has
         one. The product of two looks, and not the square of one, which would have the variance of D in it. Adam counts as a sign
         method; per-sample sigma is corrected by c4 in plug_in. Groups that differ by up to a tenth count as equal.
Limits:  B is the model's, read off at b1 and b2. Euclidean it is exact in high dimension, and B_simple. In l1, with equal mu / sigma and
         Gaussian noise, D(b) = sum |mu| erf(|mu| sqrt(b / 2) / sigma), whose B is 3 (sigma / mu)^2 where b is small and less where it is
         larger: compare values of like batches. Far above b2 it can hardly be told; where D^2 rises as fast as b or faster (gradients
         that are zero for most samples, whose sign is zero too) the signal is not positive, and B beyond any bound. Batches drawn
         without replacement are taken as drawn with it. Nothing is said of momentum, which averages over several batches.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.paper import Paper
from bigbatch.noise.simple_noise_scale import NoiseScale

PAPER = Paper(
    method="Noise scale in the optimizer's norm",
    title="Adaptive Batch Sizes Using Non-Euclidean Gradient Noise Scales for Stochastic Sign and Spectral Descent",
    authors="Naganuma et al.",
    year=2026,
    arxiv="2602.03001",
    where="the noise scales of signSGD and specSGD",
)

Norm = Literal["l1", "nuclear", "euclidean"]
NORMS: tuple[Norm, ...] = get_args(Norm)
LIFT, SETTLE = (3.4445, -4.7750, 2.0315), (15 / 8, -10 / 8, 3 / 8)
"""Coefficients of iterations on singular values: Muon's, which lifts small ones to about 1, and one that takes those to 1 exactly."""


def polar(matrices: Tensor) -> Tensor:
    """U V' of each matrix U S V', by matrix products alone, so that nothing waits for the device.

    Singular values below a millionth of the norm of the matrix stay below 1; a zero matrix stays zero.

    Args:
        matrices: (..., A, B).

    Returns:
        The same shape, in 32 bits or more.

    >>> polar(torch.tensor([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]])).round(decimals=4)
    tensor([[ 1.,  0.,  0.],
            [ 0., -1.,  0.]])
    """
    x = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    for a, b, c in (LIFT,) * 10 + (SETTLE,) * 4:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


def directions(gradients: Tensor, norm: Norm) -> Tensor:
    """s(g) of gradients of one parameter; euclidean ones are left to be divided by their length, which is that of all parameters.

    Args:
        gradients: (K, ...) of any shape; (K, ..., A, B) in the nuclear norm.
        norm: See the module's docstring.
    """
    return gradients.sign() if norm == "l1" else polar(gradients) if norm == "nuclear" else gradients


class Alignment(NamedTuple):
    """Of one look: each is the progress of a step of unit length along one gradient, as another one sees it."""

    small: float  # D1, unbiased for a batch of one group
    large: float  # D2, unbiased for a batch of all others


def pairings(own: Tensor, others: Tensor, norm: Norm) -> Tensor:
    """Products of each group's gradient of one parameter with those of all others.

    Args:
        own: (K, ...), g_j.
        others: (K, ...), o_j.
        norm: Of this parameter.

    Returns:
        Shape (4, K): <o_j, s(g_j)>, <g_j, s(o_j)>, |g_j|^2, |o_j|^2.
    """
    s_own, s_others = directions(torch.cat([own, others]), norm).chunk(2)
    products = (others * s_own, own * s_others, own * own, others * others)
    return torch.stack([product.flatten(1).sum(1) for product in products])


def alignment_of(sums: Tensor, norm: Norm) -> Tensor:
    """(2, K): D1 and D2 of each group, from (4, K): pairings, added up over parameters. Euclidean steps have the length of all."""
    return sums[:2] / sums[2:].sqrt() if norm == "euclidean" else sums[:2]


def alignment(groups: Sequence[Sequence[Tensor]], norm: Norm) -> Alignment:
    """D1 and D2 of one look, from the gradients of groups of equally many samples.

    Args:
        groups: Mean gradients of K >= 3 groups, each a list of the parameters'; matrices (..., A, B) in the nuclear norm.
        norm: See the module's docstring.

    Raises:
        UserError: If there are fewer than three groups, or the norm is unknown.

    >>> groups = [[torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -3.0])], [torch.tensor([5.0, 3.0])]]
    >>> alignment(groups, "l1")  # o_j: (4, 0), (3, 2.5), (2, -0.5)
    Alignment(small=2.0, large=1.0)
    """
    check_groups(len(groups))
    if norm not in NORMS:
        raise UserError(unknown("norm", norm, NORMS))
    sums = torch.zeros(4, len(groups), dtype=torch.float64)
    for gradients in zip(*groups, strict=True):
        own = torch.stack(gradients)
        others = (own.sum(0) - own) / (len(groups) - 1)
        sums += pairings(own, others, norm).double().cpu()
    return Alignment(*alignment_of(sums, norm).mean(1).tolist())


def check_groups(number: int) -> None:
    """Refuse fewer than three groups.

    Raises:
        UserError: With the remedy.
    """
    if number < 3:
        raise UserError(
            f"{number} groups of samples: two batch sizes are told apart by three groups at least; cut the update into at least three "
            "micro-batches, or use more ranks"
        )


def dual_noise(first: Alignment, second: Alignment, *, small_batch: float, large_batch: float) -> NoiseScale:
    """Signal and noise from two looks that share no samples; average each over looks, then divide.

    Args:
        first: D1 and D2 of a look.
        second: Of another. With the same one twice the squares are too large by the variances of D1 and D2.
        small_batch: b1, samples.
        large_batch: b2, samples.

    Returns:
        Signal and noise; each may be negative in one pair of looks.

    Raises:
        UserError: If the two batches can't tell signal from noise.

    >>> look = Alignment(small=1.0, large=2.0)  # p = 1 at 8 samples and q = 4 at 64: 1/D^2 = (1 + B/b)/|g|^2 has B = 48, |g|^2 = 7
    >>> noise, signal = dual_noise(look, look, small_batch=8, large_batch=64)[::-1]
    >>> noise / signal
    48.0
    """
    b1, b2 = small_batch, large_batch
    if not 0 < b1 < b2:
        raise UserError(f"need 0 < small_batch < large_batch, got {b1:g} and {b2:g}: one batch size cannot tell signal from noise")
    p, q = first.small * second.small, first.large * second.large
    return NoiseScale(signal=p / b1 - q / b2, noise=q - p)


def plug_in(groups: Sequence[Sequence[Tensor]], norm: Norm, *, samples: int) -> float:
    """The paper's noise scale of one update, samples. Biased where noise rules: see the module's docstring.

    Args:
        groups: As for `alignment`; matrices (A, B) in the nuclear norm.
        norm: See the module's docstring.
        samples: n of each group.

    Raises:
        UserError: If there are fewer than two groups.

    >>> plug_in([[torch.tensor([1.0, 4.0])], [torch.tensor([3.0, 4.0])]], "euclidean", samples=8)  # 8 x 2 / (4 + 16)
    0.8
    """
    R = len(groups)
    if R < 2:
        raise UserError(f"{R} group of samples: one gradient has no variance; give two at least")
    c4 = math.sqrt(2 / (R - 1)) * math.exp(math.lgamma(R / 2) - math.lgamma((R - 1) / 2))
    spread, length = 0.0, 0.0
    for gradients in zip(*groups, strict=True):
        own = torch.stack(gradients).double()
        mean = own.mean(0)
        off = own - mean
        if norm == "l1":
            spread += float((samples * off.square().sum(0) / (R - 1)).sqrt().sum()) / c4
            length += float(mean.abs().sum())
        elif norm == "nuclear":
            rows = samples * (off @ off.mT).sum(0) / (R - 1)
            spread += float(torch.linalg.eigvalsh(rows).clamp_min(0).sqrt().sum())
            length += float(torch.linalg.svdvals(mean).sum())
        else:
            spread += float(samples * off.square().sum() / (R - 1))
            length += float(mean.square().sum())
    return spread / length if norm == "euclidean" else (spread / length) ** 2
