import torch

from bigbatch.curvature.gauss_newton import GaussNewton


def test_equals_the_dense_matrix(case):
    operator = GaussNewton(case.model, case.loss, case.batches, micro_batch=9)
    v = torch.randn(3, 1229, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(operator(v), v @ case.gauss_newton, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator(v), v @ case.gauss_newton, rtol=1e-10, atol=1e-12)
    assert ((operator(v) * v).sum(1) >= 0).all()
