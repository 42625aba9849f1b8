import pytest
import torch

from bigbatch.core.checks import UserError
from bigbatch.curvature.products.operator import Dense, all_finite


def test_rows_and_vectors():
    A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    operator = Dense(A)
    assert (operator.size, operator.dtype, operator.device) == (2, torch.float32, torch.device("cpu"))
    assert operator(torch.tensor([1.0, 0.0])).tolist() == [2, 1]
    assert operator(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).tolist() == [[2, 1], [2, 6]]


@pytest.mark.parametrize("matrix", [torch.ones(2, 3), torch.ones(2), torch.ones(0, 0), torch.eye(2).long()])
def test_no_operator(matrix):
    with pytest.raises(UserError, match="must be square, of floating-point numbers"):
        Dense(matrix)


def test_not_symmetric():
    with pytest.raises(UserError, match=r"differs from its transpose by 1; .* give \(A \+ A.T\) / 2"):
        Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(UserError, match="differs from its transpose by nan"):
        Dense(torch.full((2, 2), float("nan")))


def test_finite_values_whose_sum_is_not():
    large = torch.full((3,), 3e38)
    assert all_finite(large)
    assert not all_finite(torch.tensor([float("inf"), -float("inf")]))
    assert not all_finite(torch.tensor([0.0, float("nan")]))
