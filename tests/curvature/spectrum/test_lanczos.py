import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curvature.operators import Diagonal, random_symmetric, true_residuals

from bigbatch.core.checks import UserError
from bigbatch.curvature.products.gauss_newton import GaussNewton
from bigbatch.curvature.products.hessian import Hessian
from bigbatch.curvature.products.operator import Dense
from bigbatch.curvature.spectrum.lanczos import top_eigenvalues


def exact(values, k, end):
    values = torch.as_tensor(values, dtype=torch.float64).sort().values
    upper, lower = values.flip(0)[:k], values[:k]
    return {"largest": upper, "smallest": lower, "both": torch.cat([upper, lower])}[end]


def test_hand_worked():
    """[[2, 1], [1, 2]]: 3 along (1, 1) and 1 along (1, -1)."""
    found = top_eigenvalues(Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)), end="both")
    assert found.values.tolist() == pytest.approx([3.0, 1.0])
    assert found.vectors.abs().flatten().tolist() == pytest.approx([0.5**0.5] * 4)
    assert found.vectors[1].prod() < 0
    assert found.products == 2


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_ten_eigenvalues_of_a_network(case, kind):
    dense = case.hessian if kind is Hessian else case.gauss_newton
    operator = kind(case.model, case.loss, case.batches)
    found = top_eigenvalues(operator, 10, tolerance=1e-5)
    assert found.converged.all()
    values, vectors = torch.linalg.eigh(dense)
    torch.testing.assert_close(found.values, values.flip(0)[:10], rtol=1e-8, atol=0)
    assert ((found.vectors * vectors.T.flip(0)[:10]).sum(1).abs() > 1 - 1e-8).all()
    assert found.residuals.tolist() == pytest.approx(true_residuals(operator, found), rel=1e-6)


def test_both_ends_of_a_hessian(case):
    found = top_eigenvalues(Dense(case.hessian), 10, end="both", tolerance=1e-5)
    torch.testing.assert_close(found.values, exact(torch.linalg.eigvalsh(case.hessian), 10, "both"), rtol=1e-8, atol=0)


@given(
    values=st.lists(st.integers(-50, 50), min_size=1, max_size=30, unique=True),
    repeat=st.integers(1, 3),
    end=st.sampled_from(["largest", "smallest", "both"]),
    block=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=80)
def test_any_spectrum(values, repeat, end, block, data):
    """Whatever repeats, vanishes or breaks down: pairs are eigenpairs, and as often as the block has vectors none is missed."""
    operator = Diagonal(values * repeat)
    k = data.draw(st.integers(1, max(1, operator.size // (2 if end == "both" else 1))))
    if operator.size == 1:
        end = "largest"
    found = top_eigenvalues(operator, k, end=end, tolerance=1e-12, block=block)
    assert found.converged.all()
    v, scale = found.vectors, max(map(abs, values))
    torch.testing.assert_close(v @ v.T, torch.eye(len(v), dtype=torch.float64), rtol=0, atol=1e-10)
    assert (operator(v) - found.values[:, None] * v).norm(dim=1).max() <= 1e-11 * scale
    if block >= repeat:
        torch.testing.assert_close(found.values, exact(values * repeat, k, end), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_basis", [None, 12])
def test_residuals_are_those_of_what_is_returned(dtype, max_basis):
    operator = Dense(random_symmetric(300).to(dtype))
    found = top_eigenvalues(operator, 3, end="smallest", max_basis=max_basis)
    assert found.converged.all()
    assert max(found.residuals.tolist()) <= 1e-3
    assert found.residuals.tolist() == pytest.approx(
        true_residuals(operator, found), rel=1e-3, abs=1e-6 if dtype == torch.float32 else 1e-14
    )


def test_an_operator_that_is_not_quite_symmetric_shows_in_the_residuals():
    class Skewed(Diagonal):
        def __call__(self, vectors):
            return super().__call__(vectors) + 0.05 * vectors.roll(1, -1)

    operator = Skewed(torch.arange(50.0))
    found = top_eigenvalues(operator, 2, tolerance=1e-6, max_products=50)
    assert not found.converged.any()
    assert found.residuals.tolist() == pytest.approx(true_residuals(operator, found), rel=1e-6)


def test_a_basis_of_few_vectors_costs_products_not_truth():
    operator = Diagonal(np.linspace(0, 1, 500) ** 3)
    free = top_eigenvalues(operator, 3, end="both", tolerance=1e-6)
    operator.values = operator.values + 0.0
    few = top_eigenvalues(operator, 3, tolerance=1e-6, max_basis=10)
    assert few.converged.all()
    torch.testing.assert_close(few.values, free.values[:3], rtol=1e-9, atol=0)
    whole = top_eigenvalues(operator, 3, tolerance=1e-6)
    assert whole.products < few.products < 3 * whole.products


def test_stops_as_soon_as_residuals_allow():
    """Products: with one fewer the residual is above the tolerance."""
    operator = Diagonal(np.linspace(-1, 1, 400))
    found = top_eigenvalues(operator, 2, tolerance=1e-3)
    before = top_eigenvalues(operator, 2, tolerance=1e-3, max_products=found.products - max(1, found.products // 20) - 1)
    assert found.products == operator.rows - before.products
    assert found.converged.all()
    assert not before.converged.all()
    assert before.residuals.max() > 1e-3


@pytest.mark.parametrize(("values", "k"), [([5, 5, *[1] * 98], 3), ([7] * 40, 3), ([0] * 20, 2), ([3, 3, 3, *[0] * 60], 4)])
def test_invariant_spaces_hide_nothing(values, k):
    found = top_eigenvalues(Diagonal(values), k)
    assert found.converged.all()
    assert found.values.tolist() == pytest.approx(sorted(values)[::-1][:k], abs=1e-12)
    assert found.products <= 2 * len(values)


def test_a_block_finds_an_eigenvalue_as_often_as_it_occurs():
    values = [5.0, 5.0, 5.0, *np.linspace(0, 3, 200)]
    assert top_eigenvalues(Diagonal(values), 3, block=3).values.tolist() == pytest.approx([5.0] * 3, rel=1e-5)


def test_a_warm_start_saves_products():
    matrix = random_symmetric(400)
    cold = top_eigenvalues(Dense(matrix))
    moved = matrix + 0.1 * random_symmetric(400, seed=1)
    warm, again = top_eigenvalues(Dense(moved), start=cold.vectors), top_eigenvalues(Dense(moved))
    torch.testing.assert_close(warm.values, again.values, rtol=1e-5, atol=0)
    assert warm.products <= 0.7 * again.products
    several = top_eigenvalues(Dense(moved), 3, start=top_eigenvalues(Dense(matrix), 3).vectors)
    assert several.converged.all()


def test_a_start_that_is_an_eigenvector_of_another_end_is_left():
    operator = Diagonal(torch.arange(40.0))
    start = torch.zeros(40, dtype=torch.float64)
    start[0] = 1
    assert top_eigenvalues(operator, start=start).values.tolist() == pytest.approx([39.0], rel=1e-5)


@pytest.mark.bit_for_bit
def test_the_seed_decides():
    operator = Dense(random_symmetric(60))
    first, second, other = (top_eigenvalues(operator, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.vectors, second.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    state = torch.get_rng_state()
    top_eigenvalues(operator, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_when_products_run_out_it_is_said():
    told = []
    found = top_eigenvalues(Dense(random_symmetric(100)), 2, max_products=5, progress=lambda *seen: told.append(seen))
    assert found.products == 5
    assert not found.converged.any()
    assert found.residuals.min() > 1e-3
    assert told == [(i, None) for i in range(1, 6)]


def test_no_residual_relative_to_zero():
    """A smallest eigenvalue of zero has converged when what is left is rounding."""
    found = top_eigenvalues(Diagonal([*[0.0] * 5, *range(1, 60)]), end="smallest")
    assert found.converged.all()
    assert abs(found.values[0]) < 1e-12
    assert top_eigenvalues(Diagonal([0.0] * 5)).residuals.tolist() == [0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 6}, "k = 6: must be from 1 to the number of eigenvalues, 5"),
        ({"k": 3, "end": "both"}, "k = 3 at both ends: must be from 1 to"),
        ({"k": 0}, "k = 0: must be from 1"),
        ({"end": "middle"}, "end = 'middle': must be 'largest', 'smallest' or 'both'"),
        ({"tolerance": 0.0}, "tolerance = 0.0: must be a finite number above zero"),
        ({"tolerance": 1e-16}, "tolerance = 1e-16: below the rounding of torch.float64, 2.22045e-15; use float64, or a larger one"),
        ({"k": 3, "max_products": 2}, "max_products = 2: 3 eigenvalues need at least as many"),
        ({"k": 1, "max_basis": 3}, "max_basis = 3: 1 eigenvalues in blocks of 1 need 4 vectors at least"),
        ({"block": 0}, "block = 0: must be a finite number above zero"),
        ({"start": torch.ones(4, dtype=torch.float64)}, r"vectors of shape \(4,\): must be \(5,\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        top_eigenvalues(Diagonal(range(5)), **arguments)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_product_that_is_not_finite(value):
    with pytest.raises(UserError, match="product 1 is not finite: curvature needs finite ones"):
        top_eigenvalues(Diagonal([1.0, value]))
