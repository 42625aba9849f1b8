r"""An orthonormal basis that an operator has built, and the operator as seen in it: eigenvalues, trace and density are read from it.

Q has h orthonormal rows; the first m have been multiplied, and whatever of their products lay outside of the basis has become a row of it:

    H q_j = sum_i C[i, j] q_i,    j < m, i < h                                  exact to rounding, for any operator that is linear
    H V - theta V = Q^T (C s - theta s),    V = Q^T s                           so that residuals cost no products

One start gives Lanczos's three-term recurrence, several its block form; rows are orthogonalised against all others, twice and more where
that is needed, which is Arnoldi's process: C's lack of symmetry is rounding, or shows an operator that is not symmetric.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigbatch.core.checks import NotFinite
from bigbatch.curvature.products.operator import Operator

Array = NDArray[np.float64]
BASIS_BYTES = 2**30  # of Q, unless more is asked for
FIRST_ROWS = 32


class Ritz(NamedTuple):
    """What the basis knows of the spectrum."""

    values: Array  # theta, shape (m,), ascending
    coordinates: Array  # s, shape (m, m), a column each
    residuals: Array  # |H V - theta V|, shape (m,), with |V| = 1


class Krylov:
    """A basis that grows by the products of its rows.

    Args:
        operator: H.
        seed: Of the vectors that `add_random` draws; drawn on the CPU, so that they are equal on every device and rank.

    Attributes:
        held: h, rows in all.
        multiplied: m, of which the products are known.
        products: Made so far, also those of rows that have been given up.
        norm: |H| from below, by the longest product of a unit vector so far.
    """

    def __init__(self, operator: Operator, *, seed: int) -> None:
        self.operator = operator
        self.held = self.multiplied = self.products = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._eps = torch.finfo(operator.dtype).eps
        self._rows = torch.empty(0, operator.size, dtype=operator.dtype, device=operator.device)
        self._C = np.zeros((0, 0))
        self._dropped = np.zeros(0)  # norms of remainders that were rounding
        self.norm = 0.0

    @property
    def rows(self) -> Tensor:
        """Q, shape (h, n); a view."""
        return self._rows[: self.held]

    @property
    def coefficients(self) -> Array:
        """C = Q H Q^T with the multiplied rows on the right, shape (h, m)."""
        return self._C[: self.held, : self.multiplied]

    @property
    def projected(self) -> Array:
        """Q H Q^T of the multiplied rows, shape (m, m), symmetric."""
        C = self.coefficients[: self.multiplied]
        return (C + C.T) / 2

    @property
    def rounding(self) -> float:
        """What can't be told from zero in a product: 10 eps |H|."""
        return 10 * self._eps * self.norm

    @property
    def weak(self) -> float:
        """Where the rest of every product is shorter than this, sqrt(eps) |H|, what it points to is mostly rounding."""
        return math.sqrt(self._eps) * self.norm

    def add(self, vectors: Tensor) -> None:
        """Take vectors (k, n) into the basis, to be multiplied; what depends on rows that are there is left out."""
        for vector in vectors:
            before = float(torch.linalg.vector_norm(vector))
            rest, _, norm = self._orthogonal(vector)
            if self.held < self.operator.size and norm > 10 * self._eps * before:
                self._append(rest / norm)

    def random(self, k: int = 1) -> Tensor:
        """K normal vectors, shape (k, n)."""
        drawn = torch.randn(k, self.operator.size, generator=self._generator, dtype=self.operator.dtype)
        return drawn.to(self.operator.device)

    def products_of(self, vectors: Tensor) -> Tensor:
        """H times vectors (k, n), counted, and none of them taken into the basis.

        Raises:
            UserError: If a product is not finite.
        """
        products = self.operator(vectors)
        self.products += len(vectors)
        norm = float(torch.linalg.vector_norm(products, dim=1).max())
        if not np.isfinite(norm):
            raise NotFinite(f"product {self.products} is not finite: curvature needs finite ones; look at the loss, weights and data")
        self.norm = max(self.norm, norm / float(torch.linalg.vector_norm(vectors, dim=1).max()))
        return products

    def multiply(self, k: int = 1) -> None:
        """Multiply the next rows, k of them or as many as there are; what is new in the products is appended.

        Raises:
            UserError: If a product is not finite.
        """
        first, k = self.multiplied, min(k, self.held - self.multiplied)
        for j, product in enumerate(self.products_of(self._rows[first : first + k]), start=first):
            rest, C, norm = self._orthogonal(product)
            self._C[: self.held, j] = C
            self.multiplied += 1
            if norm > self.rounding and self.held < self.operator.size:
                self._append(rest / norm)
                self._C[self.held - 1, j] = norm
            else:
                self._dropped[j] = norm

    def ritz(self) -> Ritz:
        """Values, coordinates and residuals of the Rayleigh-Ritz pairs."""
        h, m = self.held, self.multiplied
        values, s = np.linalg.eigh(self.projected)
        rest = self._C[:h, :m] @ s
        rest[:m] -= s * values
        return Ritz(values, s, np.hypot(np.linalg.norm(rest, axis=0), self._dropped[:m] @ np.abs(s)))

    def vectors(self, coordinates: Array) -> Tensor:
        """V, shape (k, n), of coordinates (m, k)."""
        return torch.tensor(coordinates.T, dtype=self._rows.dtype, device=self._rows.device) @ self._rows[: self.multiplied]

    def restart(self, coordinates: Array, *, frontier: bool = True) -> None:
        """Keep the vectors of some coordinates (m, p) only (thick restart), and the rows that are not multiplied yet."""
        h, m, p = self.held, self.multiplied, coordinates.shape[1]
        rest = h - m if frontier else 0
        kept, C, dropped = self.vectors(coordinates), np.zeros_like(self._C), np.zeros_like(self._dropped)
        C[:p, :p] = coordinates.T @ self._C[:m, :m] @ coordinates
        C[p : p + rest, :p] = self._C[m : m + rest, :m] @ coordinates
        dropped[:p] = self._dropped[:m] @ np.abs(coordinates)
        self._rows[: p + rest] = torch.cat([kept, self._rows[m : m + rest]])
        self._C, self._dropped, self.multiplied, self.held = C, dropped, p, p + rest

    def _orthogonal(self, vector: Tensor) -> tuple[Tensor, Array, float]:
        """A vector less its part in the basis; the coordinates of that part; the norm of the rest."""
        Q, C = self.rows, np.zeros(self.held)
        norm = float(torch.linalg.vector_norm(vector))
        for _ in range(4):
            c = Q @ vector
            vector = vector - c @ Q
            C += c.double().cpu().numpy()
            before, norm = norm, float(torch.linalg.vector_norm(vector))
            if norm > before / 2:  # what was taken away was small: so is its rounding
                break
        return vector, C, norm

    def _append(self, row: Tensor) -> None:
        if self.held == len(self._rows):
            more = min(max(FIRST_ROWS, self.held), self.operator.size - self.held)
            rows = self._rows.new_empty(self.held + more, self.operator.size)  # memory that is not written to costs nothing yet
            rows[: self.held] = self._rows
            self._rows = rows
            self._C, self._dropped = np.pad(self._C, (0, more)), np.pad(self._dropped, (0, more))
        self._rows[self.held] = row
        self.held += 1


def rows_that_fit(operator: Operator) -> int:
    """Rows of a basis within its share of the memory."""
    return BASIS_BYTES // (operator.size * torch.finfo(operator.dtype).bits // 8)
