r"""Products with the Hessian of a mean loss, exact, without the matrix.

Paper:   Pearlmutter 1994, Fast Exact Multiplication by the Hessian, Neural Computation 6(1), Section 3.
Formula: H v = d/dr grad L(w + r v) at r = 0 = grad (grad L(w) . v),    L(w) = 1/N sum_i l(f(x_i; w), y_i)
Units:   of the loss, by those of the parameters squared.
Differs: by differentiating the gradient's own graph towards w (the transpose, which is the same for a symmetric matrix) instead of a
         forward pass of R{.}: it needs no rule beyond those of `backward`, and the graph serves any number of vectors.
"""

import torch

from bigbatch.core.paper import Paper
from bigbatch.curvature.over_data import Graph, OverData, Product

PAPER = Paper(
    method="Hessian-vector products",
    title="Fast Exact Multiplication by the Hessian",
    authors="Pearlmutter",
    year=1994,
    arxiv="",
    where="Section 3",
    link="https://doi.org/10.1162/neco.1994.6.1.147",
)


def hessian_product(graph: Graph) -> Product:
    """The map v to H v of the summed loss of a graph, which is kept."""
    grads = torch.autograd.grad(graph.loss, graph.weights, create_graph=True, allow_unused=True)
    live = [(i, g) for i, g in enumerate(grads) if g is not None and g.requires_grad]

    def product(vector: list[torch.Tensor]) -> list[torch.Tensor | None]:
        if not live:  # a loss that is linear in the parameters
            return [None] * len(vector)
        towards = [vector[i] for i, _ in live]
        return list(torch.autograd.grad([g for _, g in live], graph.weights, towards, retain_graph=True, allow_unused=True))

    return product


class Hessian(OverData):
    """The Hessian of the mean loss over all samples, as an `Operator`."""

    def _product(self, graph: Graph) -> Product:
        return hessian_product(graph)
