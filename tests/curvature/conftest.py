"""A network of 1,229 parameters in float64, and its Hessian and Gauss-Newton matrix, every entry of them."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev, vmap


def per_sample(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def unequal(x, y, sizes):
    return list(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True))


def flat_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def set_flat(model, vector):
    with torch.no_grad():
        for p, piece in zip(model.parameters(), torch.split(vector, [p.numel() for p in model.parameters()]), strict=True):
            p.copy_(piece.view(p.shape))


def by_flat(model, vector, x):
    """The model's outputs with its parameters taken from one vector."""
    pieces = torch.split(vector, [p.numel() for p in model.parameters()])
    named = {name: piece.view(p.shape) for (name, p), piece in zip(model.named_parameters(), pieces, strict=True)}
    return functional_call(model, named, (x,))


def dense_hessian(model, loss, x, y):
    """By torch.func, all columns at once: loss gives one per sample."""
    return jacrev(jacrev(lambda w: loss(by_flat(model, w, x), y).mean()))(flat_of(model))


def dense_gauss_newton(model, loss, x, y):
    """mean of J_i^T H_i J_i, sample by sample, from whole Jacobians."""
    w = flat_of(model)
    J = jacrev(lambda w: by_flat(model, w, x))(w)  # (samples, outputs, n)
    z = by_flat(model, w, x)
    H = vmap(jacrev(jacrev(lambda zi, yi: loss(zi[None], yi[None])[0])))(z, y)
    return torch.einsum("sop,soq->pq", J, torch.einsum("soq,sqp->sop", H, J)) / len(x)


@pytest.fixture(scope="session")
def case():
    """See `make_case`; do not change it."""
    return make_case()


def make_case(dense=True):
    """model, loss, x, y, batches of unequal sizes; hessian, gauss_newton (1229, 1229)."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 18), nn.Tanh(), nn.Linear(18, 29), nn.Tanh(), nn.Linear(29, 10)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / (p.shape[-1] ** 0.5 if p.dim() > 1 else 10))
    x = torch.randn(60, 20, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (60,), generator=generator)
    assert flat_of(model).numel() == 1229
    return SimpleNamespace(
        model=model,
        loss=per_sample,
        x=x,
        y=y,
        batches=unequal(x, y, [25, 7, 28]),
        hessian=dense_hessian(model, per_sample, x, y) if dense else None,
        gauss_newton=dense_gauss_newton(model, per_sample, x, y) if dense else None,
    )
