r"""Products with the Gauss-Newton matrix of a mean loss, exact, without the matrix.

Paper:   Schraudolph 2002, Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent, Neural Computation 14(7), Section 3.
Formula: G v = 1/N sum_i J_i^T H_i J_i v,    J_i = d z_i / d w,  H_i = d^2 l(z_i, y_i) / d z_i^2,    z_i the outputs for sample i
Units:   as the Hessian. Positive semi-definite if l is convex in z; the Hessian itself where z is linear in w or H's other part vanishes.
Differs: J v by two backward passes (Townsend's trick) instead of a forward pass of R{.}, so that no rule beyond `backward` is needed.
"""

import torch
from torch import Tensor

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.curvature.over_data import Graph, OverData, Product

PAPER = Paper(
    method="Gauss-Newton products",
    title="Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent",
    authors="Schraudolph",
    year=2002,
    arxiv="",
    where="Section 3",
    link="https://doi.org/10.1162/08997660260028683",
)


def gauss_newton_product(graph: Graph) -> Product:
    """The map v to J^T H J v of the summed loss of a graph, which is kept."""
    z = graph.outputs
    if not isinstance(z, Tensor):
        raise UserError(f"model gives a {type(z).__name__}: Gauss-Newton is towards one tensor of outputs; wrap the model to return one")
    if not z.requires_grad:
        return lambda vector: [None] * len(vector)
    (by_outputs,) = torch.autograd.grad(graph.loss, z, create_graph=True)
    if not by_outputs.requires_grad:  # a loss that is linear in the outputs
        return lambda vector: [None] * len(vector)
    u = torch.zeros_like(z, requires_grad=True)
    pulled = torch.autograd.grad(z, graph.weights, u, create_graph=True, allow_unused=True)  # J^T u, linear in u
    live = [(i, p) for i, p in enumerate(pulled) if p is not None and p.requires_grad]

    def product(vector: list[Tensor]) -> list[Tensor | None]:
        towards = [vector[i] for i, _ in live]
        (jv,) = torch.autograd.grad([p for _, p in live], u, towards, retain_graph=True)
        (hjv,) = torch.autograd.grad(by_outputs, z, jv, retain_graph=True)
        return list(torch.autograd.grad(z, graph.weights, hjv, retain_graph=True, allow_unused=True))

    return product


class GaussNewton(OverData):
    """The Gauss-Newton matrix of the mean loss over all samples, as an `Operator`; the arguments are `Hessian`'s."""

    def _product(self, graph: Graph) -> Product:
        return gauss_newton_product(graph)
