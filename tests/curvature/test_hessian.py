import pytest
import torch
import torch.nn.functional as F

from bigbatch.curvature.hessian import Hessian
from bigbatch.curvature.hvp import hvp


def random_rows(k, n, dtype=torch.float64):
    return torch.randn(k, n, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("micro_batch", [None, 1, 4, 100])
@pytest.mark.parametrize("loss", ["each", "mean"])
def test_equals_the_dense_matrix(case, micro_batch, loss):
    operator = Hessian(case.model, case.loss if loss == "each" else F.cross_entropy, case.batches, micro_batch=micro_batch)
    v = random_rows(3, 1229)
    torch.testing.assert_close(operator(v), v @ case.hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator(v[0]), case.hessian @ v[0], rtol=1e-10, atol=1e-12)  # from kept graphs
    torch.testing.assert_close(hvp(case.model, case.loss, case.batches, v), v @ case.hessian, rtol=1e-10, atol=1e-12)
    assert operator.samples == 60
