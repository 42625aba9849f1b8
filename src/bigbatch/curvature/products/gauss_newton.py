r"""Products with the Gauss-Newton matrix of a mean loss, exact, without the matrix.

Paper:   Schraudolph 2002, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent,
         https://doi.org/10.1162/08997660260028683, Section 3.
Formula: G v = 1/N sum_i J_i^T H_i J_i v,    J_i = d z_i / d w,  H_i = d^2 l(z_i, y_i) / d z_i^2,    z_i the outputs for sample i
Units:   as the Hessian's.
Differs: J v is the gradient of u^T J v towards u (two backward passes) instead of a forward pass of R{.}, so that no rules beyond those of
         `backward` are needed.

It is the Hessian without the curvature of the outputs themselves, and positive semi-definite where the loss is convex in them, as
cross-entropy and squared error are. For cross-entropy it is the Fisher information.
"""

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.curvature.products.evaluated import Graph
from bigbatch.curvature.products.over_data import Linearised, OverData
from bigbatch.curvature.products.probe import gauss_newton_by_difference
from bigbatch.curvature.second_derivatives.twice_differentiable import Times

PAPER = Paper(
    method="Gauss-Newton products",
    title="Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent",
    authors="Schraudolph",
    year=2002,
    arxiv="",
    where="Section 3",
    link="https://doi.org/10.1162/08997660260028683",
)


def gauss_newton_times(loss: Tensor, outputs: Tensor, weights: list[Tensor]) -> Times | None:
    """The map v to J^T H J v, from a scalar loss, the outputs on the way to it, and the leaves; None if they do not depend on them.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> z = w**2  # J = diag(2 w), H = 2: G = diag(8 w^2)
    >>> gauss_newton_times((z**2).sum(), z, [w])([torch.tensor([1.0, 1.0])])
    [tensor([ 8., 32.])]
    """
    if not (outputs.requires_grad and loss.requires_grad):
        return None
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, weights, u, create_graph=True, allow_unused=True)  # J^T u
    edges = {i: get_gradient_edge(p) for i, p in enumerate(pulled) if p is not None and p.requires_grad}
    (slope,) = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
    if not edges or slope is None:
        return None
    z, bends = get_gradient_edge(outputs), slope.requires_grad
    slope_edge = get_gradient_edge(slope) if bends else None

    def times(v: list[Tensor]) -> list[Tensor | None]:
        if slope_edge is None:  # the loss is linear in the outputs, or piecewise
            return [None] * len(v)
        (Jv,) = torch.autograd.grad(list(edges.values()), u, [v[i] for i in edges], retain_graph=True)
        (HJv,) = torch.autograd.grad([slope_edge], [z], [Jv], retain_graph=True)
        return list(torch.autograd.grad([z], weights, [HJv], retain_graph=True, allow_unused=True))

    return times


class GaussNewton(OverData):
    """The Gauss-Newton matrix of the mean loss over all samples, an `Operator`; see `Hessian` for arguments and errors.

    The outputs are what the model gives: one tensor.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> squared = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    >>> GaussNewton(model, squared, [(x, torch.zeros(2))])(torch.ones(1))  # 2 x^2, as the outputs are linear in the weight
    tensor([10.])
    """

    _by_difference = staticmethod(gauss_newton_by_difference)

    def _linearised(self, graph: Graph) -> Linearised | None:
        if not isinstance(graph.outputs, Tensor):
            told = type(graph.outputs).__name__
            raise UserError(f"model gives a {told}: the Gauss-Newton matrix is towards one tensor of outputs; wrap the model to give one")
        times = gauss_newton_times(graph.loss, graph.outputs, graph.weights)
        return None if times is None else Linearised(times, None)
