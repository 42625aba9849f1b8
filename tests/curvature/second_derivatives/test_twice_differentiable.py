import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from bigbatch.core.checks import UserError
from bigbatch.curvature import GaussNewton, Hessian
from bigbatch.curvature.second_derivatives.twice_differentiable import refuse_once_differentiable


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.exp()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 + x) * x.exp()


class Once(Double):
    backward = staticmethod(once_differentiable(Double.backward))


def times(function, kind):
    """A function of one's own between two layers; torch says nothing of `Once`, and leaves its curvature out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double()
    forward = lambda z: model[1](function(model[0](z)))  # noqa: E731
    model.forward = forward
    x = torch.randn(4, 2, dtype=torch.float64)
    operator = kind(model, lambda z, _: z[:, 0] ** 2, [(x, x)])
    return operator(torch.ones(13, dtype=torch.float64))


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_functions_of_ones_own(kind):
    torch.testing.assert_close(times(Double.apply, kind), times(lambda x: x * x.exp(), kind))
    with pytest.raises(UserError, match="loss is not twice differentiable .Once is marked once_differentiable"):
        times(Once.apply, kind)


WITHOUT_A_RULE = {"_cdist_backward": lambda z: torch.cdist(z, z + 1, p=3), "zeta": lambda z: torch.special.zeta(z, z)}


@pytest.mark.parametrize("name", WITHOUT_A_RULE)
def test_what_torch_has_no_rule_for(name):
    loss = lambda z, y: WITHOUT_A_RULE[name](z**2 + 2).sum(1)  # noqa: E731
    operator = Hessian(nn.Linear(2, 3), loss, [(torch.ones(2, 2), torch.ones(2))])
    with pytest.raises(UserError, match=f"loss is not twice differentiable .*'{name}' is not implemented"):
        operator(torch.ones(9))


def test_a_graph_of_many_nodes_or_none():
    refuse_once_differentiable(torch.ones(()))
    x = torch.ones((), requires_grad=True)
    y = x
    for _ in range(3000):
        y = y + y  # two ways to each node
    refuse_once_differentiable(y)
