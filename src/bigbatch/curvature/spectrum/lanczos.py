r"""The outermost eigenvalues of an operator, with residuals that say how far they can be trusted.

Paper:   Wu, Simon 2000, Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems, Section 2,
         https://doi.org/10.1137/S0895479898334605.
Formula: H Q_m = Q_m T_m + beta q_{m+1} e_m^T,    T_m s = theta s,    v = Q_m s
         |H v - theta v| = beta |s_m|;    an eigenvalue of H lies within it of theta
         restart: Q_m <- [v_1 ... v_p, q_{m+1}], with the pairs nearest to the wanted ends, when the basis has as many rows as it may.
Units:   the operator's: of the loss, by those of the parameters squared. Residuals are relative, |H v - theta v| / |theta|.
Differs: orthogonalised against all rows, and the residual from all coefficients instead of beta |s_m| (see `krylov`), so that it is that
         of the vector returned, to rounding, also for an operator that is not quite linear or symmetric. A space that is invariant is
         left by a random vector, until another such space has brought nothing new. Blocks of several vectors.
Limits:  from one start an eigenvalue that occurs m times is found once unless the space breaks down; `block=m` finds it m times. Such
         eigenvalues, other than zero, come from symmetries. Starts near eigenvectors (warm) can miss what has grown from nothing since.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.paper import Paper
from bigbatch.curvature.products.operator import Operator, as_rows
from bigbatch.curvature.spectrum.krylov import Krylov, Ritz, rows_that_fit

PAPER = Paper(
    method="Top eigenvalues (Lanczos)",
    title="Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems",
    authors="Wu, Simon",
    year=2000,
    arxiv="",
    where="Section 2",
    link="https://doi.org/10.1137/S0895479898334605",
)
End = Literal["largest", "smallest", "both"]
Places = NDArray[np.intp]
MAX_PRODUCTS = 1000
NOISE = 0.1  # length of the random vector that is mixed into a given start
CONFIRMING = 10  # products from a random vector after an invariant space, at most, to see whether it was all


class Eigenpairs(NamedTuple):
    """Eigenvalues of one end or of both, outermost first; those of the upper end before those of the lower."""

    values: Tensor  # lambda, shape (k,), float64
    vectors: Tensor  # v, shape (k, n), a row each, |v| = 1; of the operator's dtype and device
    residuals: Tensor  # |H v - lambda v| / |lambda|, shape (k,), float64; 0 where H v is 0
    converged: Tensor  # shape (k,), bool: the residual is at most the tolerance, or H v - lambda v is rounding of H
    products: int


def top_eigenvalues(
    operator: Operator,
    k: int = 1,
    *,
    end: End = "largest",
    tolerance: float = 1e-3,
    max_products: int | None = None,
    max_basis: int | None = None,
    block: int = 1,
    seed: int = 0,
    start: Tensor | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Eigenpairs:
    """The k largest or smallest eigenvalues (with their sign), or k at each end, by as few products as a start allows.

    Args:
        operator: H, symmetric.
        k: Eigenvalues at an end.
        end: "largest", "smallest" or "both".
        tolerance: Of the relative residuals. An eigenvalue that stands alone is far nearer than its residual: about its square.
        max_products: Stop there in any case; 1,000 if left out.
        max_basis: Vectors held at once, each of the parameters' size: when as many are there, the best are kept. Fewer save memory and
            cost products; as many as fit in 1 GiB if left out.
        block: Vectors multiplied at once: an eigenvalue that occurs up to so often is found as often. More products in all, which a GPU
            may make in less time.
        seed: Of the random start.
        start: Shape (n,) or (j, n), where to begin instead: eigenvectors of a little earlier, or the gradient, which mostly lies among the
            top ones (`start=hessian.gradient()`, for which a `Hessian` needs no pass more than for products). They are the block, filled
            up with random vectors; a little noise is mixed in, so that nothing stays unseen.
        progress: Called with the products made, and None, after each step.

    Returns:
        Eigenpairs; look at `converged`. All ranks of an operator over several get the same.

    Raises:
        UserError: If there are more eigenvalues wanted than there are, an argument is out of range, or a product is not finite.

    >>> from bigbatch.curvature import Dense
    >>> found = top_eigenvalues(Dense(torch.diag(torch.arange(10.0).double())), 2, tolerance=1e-10)
    >>> found.values.round(decimals=8).tolist(), found.converged.tolist(), found.products
    ([9.0, 8.0], [True, True], 10)
    """
    n, wanted = operator.size, 2 * k if end == "both" else k
    if end not in ("largest", "smallest", "both"):
        raise UserError(f"end = {end!r}: must be 'largest', 'smallest' or 'both'")
    if not k >= 1 or wanted > n:
        raise UserError(f"k = {k}{' at both ends' if end == 'both' else ''}: must be from 1 to the number of eigenvalues, {n}")
    check_positive("block", block)
    check_positive("tolerance", tolerance)
    least = 10 * torch.finfo(operator.dtype).eps
    if tolerance < least:
        raise UserError(f"tolerance = {tolerance:g}: below the rounding of {operator.dtype}, {least:g}; use float64, or a larger one")
    most = MAX_PRODUCTS if max_products is None else max_products
    if most < wanted:
        raise UserError(f"max_products = {most}: {wanted} eigenvalues need at least as many")
    given = None if start is None else as_rows(operator, start)
    block = max(block, 1 if given is None else len(given))
    fewest = min(n, wanted + 2 * block + 1)
    limit = min(n, max(fewest, rows_that_fit(operator)) if max_basis is None else max_basis)
    if limit < fewest:
        raise UserError(f"max_basis = {max_basis}: {wanted} eigenvalues in blocks of {block} need {fewest} vectors at least")
    basis = Krylov(operator, seed=seed)
    starts = _normalised(basis.random(block))
    if given is not None:
        starts[: len(given)] = _normalised(given) + NOISE * starts[: len(given)]
    basis.add(starts)
    ritz, chosen = _grow(basis, k, end, tolerance, most, limit, block, progress)
    values, residuals = ritz.values[chosen], ritz.residuals[chosen]
    relative = np.divide(residuals, np.abs(values), out=np.where(residuals > 0, np.inf, 0.0), where=values != 0)
    return Eigenpairs(
        torch.from_numpy(values.copy()),
        _normalised(basis.vectors(ritz.coordinates[:, chosen])),
        torch.from_numpy(relative),
        torch.from_numpy(_converged(basis, ritz, tolerance)[chosen]),
        basis.products,
    )


def _grow(
    basis: Krylov, k: int, end: End, tolerance: float, most: int, limit: int, block: int, progress: Callable[[int, int | None], None] | None
) -> tuple[Ritz, Places]:
    """Multiply until the wanted pairs have converged or products run out; all pairs, and the places of the wanted ones."""
    n, wanted = basis.operator.size, 2 * k if end == "both" else k
    check_at, confirm_at, before = wanted, 0, None  # the first two in products; values of the last invariant space
    while True:
        whole = basis.held == basis.multiplied  # every product lies within the space
        last = basis.products >= most or basis.multiplied == n
        if basis.multiplied >= wanted and (whole or last or basis.products >= check_at):
            ritz, chosen = basis.ritz(), _outermost(basis.multiplied, k, end)
            whole |= ritz.residuals.max() <= basis.weak
            done = _converged(basis, ritz, tolerance)[chosen].all()
            nothing_new = before is not None and np.allclose(ritz.values[chosen], before, rtol=tolerance, atol=basis.rounding)
            if last or (done and (nothing_new if whole else basis.products >= confirm_at)):
                return ritz, chosen
            before = ritz.values[chosen] if whole else before
            check_at = basis.products + max(1, basis.multiplied // 20)
        if whole:
            basis.add(basis.random(block))
            check_at = confirm_at = basis.products + CONFIRMING
        if limit < n and basis.held + block > limit:
            spare = (limit - 2 * block - wanted) // 2
            ritz = basis.ritz()
            basis.restart(ritz.coordinates[:, _outermost(basis.multiplied, k + (spare // 2 if end == "both" else spare), end)])
        basis.multiply(min(block, most - basis.products))
        if progress is not None:
            progress(basis.products, None)


def _outermost(m: int, k: int, end: End) -> Places:
    """Places of the k outermost of m ascending values: the largest, from the top; the smallest, from the bottom; or those and these."""
    upper, lower = np.arange(m - 1, m - 1 - k, -1), np.arange(k)
    return upper if end == "largest" else lower if end == "smallest" else np.concatenate([upper, lower])


def _normalised(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def _converged(basis: Krylov, ritz: Ritz, tolerance: float) -> NDArray[np.bool_]:
    return np.less_equal(ritz.residuals, np.maximum(tolerance * np.abs(ritz.values), basis.rounding))
