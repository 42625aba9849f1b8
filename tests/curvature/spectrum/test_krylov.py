import numpy as np
import pytest
import torch
from tests.curvature.operators import Diagonal, random_symmetric

from bigbatch.curvature.products.operator import Dense
from bigbatch.curvature.spectrum.krylov import Krylov


def grown(operator, steps, block=1):
    basis = Krylov(operator, seed=0)
    basis.add(basis.random(block))
    while basis.multiplied < min(steps, basis.held):
        basis.multiply(block)
    return basis


def relation_holds(basis, matrix, tolerance):
    """H Q^T = Q^T C for the rows that are multiplied."""
    rows = basis.rows.double()
    torch.testing.assert_close(rows @ rows.T, torch.eye(basis.held, dtype=torch.float64), rtol=0, atol=tolerance)
    left = matrix @ rows[: basis.multiplied].T - rows.T @ torch.from_numpy(basis.coefficients)
    assert left.norm() <= tolerance * matrix.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("block", [1, 3])
def test_the_relation_holds_while_it_grows_and_after_a_restart(dtype, tolerance, block):
    matrix = random_symmetric(80)
    basis = grown(Dense(matrix.to(dtype)), 40, block)
    relation_holds(basis, matrix, tolerance)
    basis.restart(basis.ritz().coordinates[:, -7:])
    assert (basis.multiplied, basis.held) == (7, 7 + block)
    relation_holds(basis, matrix, tolerance)
    basis.multiply(block)
    relation_holds(basis, matrix, tolerance)
    assert np.abs(basis.coefficients[:7, 7:]).max() > 0.01  # what the restart coupled


def test_a_full_basis_takes_nothing_more():
    basis = grown(Diagonal(range(6)), 6)
    assert (basis.held, basis.multiplied) == (6, 6)
    basis.add(basis.random(3))
    assert basis.held == 6
    np.testing.assert_allclose(basis.ritz().values, range(6), atol=1e-12)


def test_what_depends_on_the_basis_is_left_out():
    basis = Krylov(Diagonal(range(6)), seed=0)
    vectors = basis.random(2)
    basis.add(torch.stack([vectors[0], 3 * vectors[0], vectors.sum(0), torch.zeros(6, dtype=torch.float64)]))
    assert basis.held == 2


def test_vectors_are_drawn_from_the_seed_alone():
    first, second = (Krylov(Diagonal(range(9)), seed=3) for _ in range(2))
    torch.manual_seed(7)
    assert torch.equal(first.random(2), second.random(2))
