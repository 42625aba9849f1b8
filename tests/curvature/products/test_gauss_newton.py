import pytest
import torch
import torch.nn.functional as F
from tests.curvature.conftest import per_sample
from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.curvature.products.gauss_newton import GaussNewton, gauss_newton_times
from bigbatch.curvature.products.hessian import Hessian

EXACT = {"rtol": 1e-10, "atol": 1e-12}


def rows(k, n):
    return torch.randn(k, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_hand_worked():  # z = w^2, l = z^2 at w = 3: J = 6, H = 2, so G = 72, whereas the Hessian is 12 w^2 = 108
    w = torch.tensor([3.0], requires_grad=True)
    times = gauss_newton_times((w**4).sum(), w**2, [w])
    assert times is None, "these outputs are not on the way to that loss"
    z = w**2
    assert gauss_newton_times((z**2).sum(), z, [w])([torch.tensor([1.0])])[0].item() == 72


@pytest.mark.parametrize("micro_batch", [None, 1, 9])
@pytest.mark.parametrize("loss", [per_sample, F.cross_entropy])
def test_equals_the_dense_matrix(case, micro_batch, loss):
    operator = GaussNewton(case.model, loss, case.batches, micro_batch=micro_batch)
    v = rows(3, 1229)
    for _ in range(2):  # the second time by graphs that were kept
        torch.testing.assert_close(operator(v), v @ case.gauss_newton, **EXACT)
    torch.testing.assert_close(operator(v[2]), case.gauss_newton @ v[2], **EXACT)


def test_semi_definite_where_the_hessian_is_not(case):
    whole = GaussNewton(case.model, case.loss, case.batches)(torch.eye(1229, dtype=torch.float64))
    assert torch.linalg.eigvalsh(whole)[0] > -1e-13
    assert torch.linalg.eigvalsh(case.hessian)[0] < -1e-3


def test_is_the_hessian_of_a_linear_model(case):
    torch.manual_seed(0)
    model = nn.Linear(20, 10).double()
    v = rows(2, 210)
    torch.testing.assert_close(
        GaussNewton(model, case.loss, case.batches)(v), Hessian(model, case.loss, case.batches)(v), rtol=1e-12, atol=1e-14
    )


def test_some_of_the_parameters(case):
    operator = GaussNewton(case.model, case.loss, case.batches, parameters=case.model[4].parameters())
    v = rows(1, 300)[0]
    torch.testing.assert_close(operator(v), case.gauss_newton[-300:, -300:] @ v, **EXACT)


def test_outputs_that_are_not_one_tensor():
    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    operator = GaussNewton(Two(2, 1), lambda z, _: z[0][:, 0] ** 2, [(torch.ones(3, 2), torch.ones(3))])
    with pytest.raises(UserError, match="model gives a tuple: the Gauss-Newton matrix is towards one tensor of outputs"):
        operator(torch.ones(3))
