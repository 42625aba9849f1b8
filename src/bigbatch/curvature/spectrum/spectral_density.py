r"""The density of an operator's eigenvalues, by stochastic Lanczos quadrature, with a band.

Paper:   Ghorbani, Krishnan, Xiao 2019, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, arXiv:1901.10159,
         Algorithm 2.
Formula: density(x) = 1/n sum_i delta(x - lambda_i) ~ 1/K sum_k sum_j w_j^(k) delta(x - theta_j^(k))
         theta_j, s_j: eigenpairs of the tridiagonal matrix of m Lanczos steps from v^(k), |v| = 1;    w_j = (first component of s_j)^2
         moment p: 1/n tr(H^p) ~ 1/K sum_k sum_j w_j theta_j^p,    which from one start is v^T H^p v exactly, for p < 2 m
         curve: each delta as a Gaussian of a stated width.
Units:   nodes are eigenvalues; weights sum to 1; a curve is in 1 / eigenvalue.
Differs: an outer eigenvalue that the first start finds to rounding weighs exactly 1/n, in every start, instead of the square of one
         component of a random vector, whose error is larger than itself; only what lies between is sampled, by vectors orthogonal to the
         found ones (as Chen, Hallman 2022, arXiv:2205.01736, for the trace). Full orthogonalisation; `eigh`, so that nodes are real.
Limits:  a value found with an unlikely large weight (over 25 / n) occurs several times, such as zero: it is sampled, not counted as one.
         Of one that occurs two to about ten times the first start misses all but one. A first moment near zero, between eigenvalues of
         both signs, has a small error beside the eigenvalues' size only.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigbatch.core.checks import check_fraction, check_positive
from bigbatch.core.paper import Paper
from bigbatch.core.student import student_quantile
from bigbatch.curvature.products.operator import Operator
from bigbatch.curvature.spectrum.krylov import Array, Krylov

PAPER = Paper(
    method="Spectral density (stochastic Lanczos quadrature)",
    title="An Investigation into Neural Net Optimization via Hessian Eigenvalue Density",
    authors="Ghorbani, Krishnan, Xiao",
    year=2019,
    arxiv="1901.10159",
    where="Algorithm 2",
)
FOUND = 1e-4  # |H v - theta v| / |theta| of a value that counts as an eigenvalue: its own error is about the square
TINY = 1e-300
SEVERAL = 25.0  # n times its weight, from which on a value is taken to occur several times; 6e-7 of those that occur once


class Curve(NamedTuple):
    """A smoothed density with its band; low and high are NaN with a single start."""

    x: Array  # eigenvalues
    mean: Array  # density there, 1 / eigenvalue
    low: Array
    high: Array
    width: float  # standard deviation of the Gaussian kernel


class SpectralDensity(NamedTuple):
    """The quadrature of each start."""

    nodes: Array  # theta, shape (starts, steps); of weight 0 where a start needed fewer
    weights: Array  # w, shape (starts, steps), >= 0, each row sums to 1
    num_found: int  # eigenvalues that every row has as nodes of weight 1/n
    products: int

    def moment(self, p: int) -> float:
        """1/n tr(H^p), the mean of the p-th powers of all eigenvalues."""
        return float(self._moments(p).mean())

    def moment_error(self, p: int) -> float:
        """Standard error of the moment, over starts; NaN with a single one."""
        starts = len(self.nodes)
        return float(self._moments(p).std(ddof=1)) / math.sqrt(starts) if starts > 1 else math.nan

    def curve(self, *, num_points: int = 1000, width: float | None = None, confidence: float = 0.95) -> Curve:
        """The density as a smooth curve.

        Args:
            num_points: Of x, evenly over all nodes and 4 widths beyond.
            width: Standard deviation of the Gaussian; a hundredth of what the nodes span, if left out. Finer structure is not seen.
            confidence: Of the band, pointwise, Student's over starts.

        Raises:
            UserError: If an argument is out of range.
        """
        check_fraction("confidence", confidence)
        weighty = self.nodes[self.weights > 0]
        if width is None:
            width = float(np.ptp(weighty)) / 100 or max(abs(float(weighty[0])), 1.0) / 100
        check_positive("width", width)
        x = np.linspace(weighty.min() - 4 * width, weighty.max() + 4 * width, num_points)
        each = np.stack([_smoothed(x, *row, width) for row in zip(self.nodes, self.weights, strict=True)])
        mean, starts = each.mean(axis=0), len(each)
        if starts == 1:
            return Curve(x, mean, np.full_like(x, np.nan), np.full_like(x, np.nan), width)
        half = student_quantile((1 + confidence) / 2, starts - 1) * each.std(axis=0, ddof=1) / math.sqrt(starts)
        return Curve(x, mean, np.maximum(mean - half, 0), mean + half, width)

    def _moments(self, p: int) -> Array:
        return np.asarray((self.weights * self.nodes**p).sum(axis=1))


def spectral_density(
    operator: Operator, *, steps: int = 100, starts: int = 4, seed: int = 0, progress: Callable[[int, int | None], None] | None = None
) -> SpectralDensity:
    """How the eigenvalues lie, from `steps` products for the first start and somewhat fewer for the others.

    Args:
        operator: H, symmetric.
        steps: m, nodes of a start; a basis of as many vectors of the parameters' size is held.
        starts: K, 2 at least for a band; what is sampled gets more exact by the square root of it.
        seed: Of the random vectors.
        progress: Called with the products made, and at most how many there will be.

    Returns:
        The density; all ranks of an operator over several get the same.

    Raises:
        UserError: If an argument is out of range, or a product is not finite.

    >>> import torch
    >>> from bigbatch.curvature import Dense
    >>> density = spectral_density(Dense(torch.diag(torch.tensor([1.0, 2.0, 6.0]).double())), starts=1)
    >>> density.nodes.round(9).tolist(), round(density.moment(1), 9), density.products
    ([[1.0, 2.0, 6.0]], 3.0, 3)
    """
    check_positive("steps", steps)
    check_positive("starts", starts)
    n, steps = operator.size, min(steps, operator.size)
    basis = Krylov(operator, seed=seed)

    def grow(to: int) -> None:
        basis.add(basis.random())
        while basis.multiplied < min(to, basis.held):
            basis.multiply()
            if progress is not None:
                progress(basis.products, starts * steps)

    grow(steps)
    ritz = basis.ritz()
    start = np.square(ritz.coordinates[0])
    found = _found(ritz.values, ritz.residuals, start, n, whole=basis.held == basis.multiplied)
    p, share = int(found.sum()), 1 - found.sum() / n
    rest = np.where(found, 0, start)
    weights = np.where(found, 1 / n, share * rest / max(rest.sum(), TINY))
    rows = [_padded(ritz.values, weights, steps)]
    kept = ritz.coordinates[:, found]
    for _ in range(1, starts if p < n else 1):
        basis.restart(kept, frontier=False)
        grow(steps)
        kept = np.eye(basis.multiplied, p)
        between, s = np.linalg.eigh(basis.projected[p:, p:])
        nodes, weights = np.append(ritz.values[found], between), np.append(np.full(p, 1 / n), share * np.square(s[0]))
        rows.append(_padded(nodes, weights, steps))
    rows += rows[:1] * (starts - len(rows))
    return SpectralDensity(np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]), p, basis.products)


def _found(values: Array, residuals: Array, weights: Array, n: int, *, whole: bool) -> NDArray[np.bool_]:
    """Which nodes of a random start are eigenvalues that occur once; none, if their weights tell that many occur several times."""
    m = len(values)
    if m == n:
        return np.full(n, True)
    found = (residuals <= FOUND * np.abs(values)) & (n * weights < SEVERAL)
    outermost = np.argsort(np.where(found, -np.abs(values), 0.0))
    found[outermost[m if whole else m * 9 // 10 :]] = False  # something must be left to sample the rest by
    p, share = found.sum(), weights[found].sum()
    return found if n * share <= 1.5 * p + 10 and 1 - share >= (1 - p / n) / 2 else np.full(m, False)


def _smoothed(x: Array, nodes: Array, weights: Array, width: float) -> Array:
    return np.asarray(np.exp(-np.square((x[:, None] - nodes) / width) / 2) @ weights / (width * math.sqrt(2 * math.pi)))


def _padded(nodes: Array, weights: Array, steps: int) -> tuple[Array, Array]:
    """By the size of nodes, and filled up with nodes of no weight."""
    order, missing = np.argsort(nodes), steps - len(nodes)
    return np.pad(nodes[order], (0, missing), mode="edge"), np.pad(weights[order], (0, missing))
