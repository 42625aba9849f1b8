r"""The trace of an operator from a few products, with an error that can be believed.

Paper:   Meyer, Musco, Musco, Woodruff 2020, Hutch++: Optimal Stochastic Trace Estimation, arXiv:2010.09649, Algorithm 1.
Formula: with orthonormal rows Q near the range of the largest eigenvalues, P = 1 - Q^T Q, and u uniform on the unit sphere of P's range,
             tr(H) = tr(Q H Q^T) + tr(P H P),    tr(P H P) = (n - m) E[u^T H u],    Var = 2 |P H P|_F^2 and less
         Stein 1945: from the first N_0 samples their standard deviation s, and from it alone how many in all,
             N = (s / (tolerance |tr H|))^2,    standard error s / sqrt(N),    95 % band: +- t(N_0 - 1) standard errors
Units:   the operator's.
Differs: Q is a Krylov space instead of a sketch H S (Chen, Hallman 2022, arXiv:2205.01736): its products are known, so that a direction
         costs one product, not two, and it is nearer to the largest eigenvalues. It grows as long as a product in it saves more than one
         sample. Samples are drawn before Q, and independent of it. The number of samples and the band are Stein's: the band holds
         95 % exactly, for normal samples, though the data choose the number; stopping when the running error looks small does not.
         Where that is cheaper, Q becomes all of R^n, and the trace exact.
Limits:  a trace near zero, between eigenvalues of both signs, has no small relative error: look at `converged`, and at the band.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.paper import Paper
from bigbatch.core.student import student_quantile
from bigbatch.curvature.products.operator import Operator
from bigbatch.curvature.spectrum.krylov import Array, Krylov, rows_that_fit

PAPER = Paper(
    method="Trace (Hutch++)",
    title="Hutch++: Optimal Stochastic Trace Estimation",
    authors="Meyer et al.",
    year=2020,
    arxiv="2010.09649",
    where="Algorithm 1",
)
PILOT = 10  # N_0: enough for a band of 2.26 standard errors, and few beside what follows
WINDOW = 4  # steps over which the worth of one more is averaged
MAX_PRODUCTS = 500
TINY = 1e-150  # in place of a tolerance of zero
Tell = Callable[[int, int | None], None]


class TraceEstimate(NamedTuple):
    """A trace with its 95 % band."""

    value: float
    standard_error: float  # 0 where the trace is exact, to rounding
    low: float
    high: float
    products: int
    converged: bool  # the standard error is at most the tolerance times |value|


def trace(
    operator: Operator,
    *,
    tolerance: float = 0.02,
    max_products: int | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> TraceEstimate:
    """Sum of all eigenvalues, to a relative standard error.

    Args:
        operator: H, symmetric.
        tolerance: Of the standard error, relative to the trace.
        max_products: Stop there in any case; 500 if left out.
        seed: Of the random vectors.
        progress: Called with the products made and, once it is known, how many there will be.

    Returns:
        The estimate; all ranks of an operator over several get the same.

    Raises:
        UserError: If an argument is out of range, or a product is not finite.

    >>> from bigbatch.curvature import Dense
    >>> trace(Dense(torch.diag(torch.arange(10.0).double())))
    TraceEstimate(value=45.0, standard_error=0.0, low=45.0, high=45.0, products=10, converged=True)
    """
    check_positive("tolerance", tolerance)
    n, most = operator.size, MAX_PRODUCTS if max_products is None else max_products
    tell = progress or _silent
    basis = Krylov(operator, seed=seed)
    if n <= min(most, 2 * PILOT):
        return _exact(basis, tell)
    if most < 2 * PILOT:
        raise UserError(f"max_products = {most}: a standard error needs {2 * PILOT} at least")
    vectors = basis.random(PILOT)
    products = basis.products_of(vectors)
    tell(basis.products, None)
    _deflate(basis, vectors, products, tolerance, most, tell)
    if basis.multiplied == n:
        return _exact(basis, tell)
    samples = complement_samples(basis, vectors, products)
    inside, s = float(basis.projected.trace()), float(samples.std(ddof=1))
    del vectors, products
    while True:
        value, error = inside + float(samples.mean()), s / math.sqrt(len(samples))
        needed = math.ceil((s / max(tolerance * abs(value), TINY)) ** 2)
        if needed - len(samples) >= n - basis.multiplied and n - basis.multiplied <= min(most - basis.products, rows_that_fit(operator)):
            return _exact(basis, tell)
        more = max(min(needed - len(samples), most - basis.products), 0)
        tell(basis.products, basis.products + more)
        if not more:
            break
        rows = basis.random(min(more, PILOT))
        samples = np.append(samples, complement_samples(basis, rows, basis.products_of(rows)))
    half = student_quantile(0.975, PILOT - 1) * error
    return TraceEstimate(value, error, value - half, value + half, basis.products, error <= tolerance * abs(value))


def complement_samples(basis: Krylov, vectors: Tensor, products: Tensor) -> Array:
    """(n - m) u^T H u for u along P g, from rows g and their products H g, shapes (k, n): k values, without further products."""
    Q = basis.rows[: basis.multiplied]
    a, b = ((rows @ Q.T).double().cpu().numpy() for rows in (vectors, products))
    whole, length = ((vectors * other).sum(1, dtype=torch.float64).cpu().numpy() for other in (products, vectors))
    form = whole - 2 * (a * b).sum(1) + (a @ basis.projected * a).sum(1)
    return np.asarray((basis.operator.size - basis.multiplied) * form / (length - (a * a).sum(1)))


def removed(coefficients: Array) -> Array:
    """What each multiplied row takes from |P H P|_F^2: 2 |P H q|^2 - (q^T H q)^2, from C of shape (h, m)."""
    diagonal = np.square(np.diagonal(coefficients))
    return np.asarray(2 * np.square(np.tril(coefficients)).sum(0) - diagonal)


def _silent(done: int, total: int | None) -> None: ...


def _deflate(basis: Krylov, vectors: Tensor, products: Tensor, tolerance: float, most: int, tell: Tell) -> None:
    """Grow the space while one more product in it saves more than one sample: 2 |P H P|_F^2 / (tolerance tr)^2 of these are needed."""
    value = float((vectors * products).sum(1, dtype=torch.float64).mean())
    whole = float(products.square().sum(1, dtype=torch.float64).mean())  # of |H|_F^2
    basis.add(basis.random())
    limit = rows_that_fit(basis.operator)
    while basis.multiplied < basis.held < limit and basis.products < most:
        basis.multiply()
        tell(basis.products, None)
        taken = removed(basis.coefficients)
        worth, left = taken[-WINDOW:].mean(), most - basis.products
        enough = 2 * worth < (tolerance * value) ** 2  # samples that it saves
        if basis.multiplied >= WINDOW and (enough or worth * left < whole - taken.sum()):
            return


def _exact(basis: Krylov, tell: Tell) -> TraceEstimate:
    """The trace in all of R^n."""
    n = basis.operator.size
    total = basis.products + n - basis.multiplied
    while basis.multiplied < n:
        if basis.held == basis.multiplied:
            basis.add(basis.random())
        basis.multiply(PILOT)
        tell(basis.products, total)
    value = float(basis.projected.trace())
    return TraceEstimate(value, 0.0, value, value, basis.products, True)
