r"""Products with the Hessian of a mean loss, exact, without the matrix.

Paper:   Pearlmutter 1994, Fast Exact Multiplication by the Hessian, https://doi.org/10.1162/neco.1994.6.1.147, Section 3.
Formula: H v = d/dr grad L(w + r v) at r = 0 = grad (grad L(w) . v),    L(w) = 1/N sum_i l(f(x_i; w), y_i)
Units:   of the loss, by those of the parameters squared.
Differs: the gradient's own graph is differentiated towards w (the transposed product, the same for a symmetric matrix) instead of a forward
         pass of R{.}: it needs no rules beyond those of `backward`, and one graph serves any number of vectors.
"""

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bigbatch.core.paper import Paper
from bigbatch.curvature.products.evaluated import Graph
from bigbatch.curvature.products.over_data import Linearised, OverData
from bigbatch.curvature.products.probe import hessian_by_difference

PAPER = Paper(
    method="Hessian-vector products",
    title="Fast Exact Multiplication by the Hessian",
    authors="Pearlmutter",
    year=1994,
    arxiv="",
    where="Section 3",
    link="https://doi.org/10.1162/neco.1994.6.1.147",
)


def hessian_times(loss: Tensor, weights: list[Tensor]) -> Linearised | None:
    """The map v to H v and the gradient, from a scalar loss and its leaves; None if it does not depend on them.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> times, gradient = hessian_times((w**3).sum(), [w])  # H = diag(6 w)
    >>> times([torch.tensor([1.0, 1.0])]), gradient
    ([tensor([ 6., 12.])], [tensor([ 3., 12.])])
    """
    if not loss.requires_grad:
        return None
    grads = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    if all(g is None for g in grads):
        return None
    edges = {i: get_gradient_edge(g) for i, g in enumerate(grads) if g is not None and g.requires_grad}  # not the values

    def times(v: list[Tensor]) -> list[Tensor | None]:
        if not edges:  # the loss is linear in the parameters, or piecewise
            return [None] * len(v)
        return list(torch.autograd.grad(list(edges.values()), weights, [v[i] for i in edges], retain_graph=True, allow_unused=True))

    return Linearised(times, [None if g is None else g.detach() for g in grads])


class Hessian(OverData):
    """The Hessian of the mean loss over all samples, an `Operator`.

    Nothing of the model changes: not its mode, buffers, `.grad`, `requires_grad` or random states, also if something is raised.
    Sums over samples are in float64.

    Args:
        model: Any module; of a DistributedDataParallel or compiled one, what is within.
        loss: Takes outputs and targets of n samples and gives one loss a sample, shape (n,), or their plain mean, a scalar.
            May be called more than once a micro-batch, and on parts of it: it should have no side effects.
        batches: Pairs of inputs and targets of any sizes, the same at every pass: a list, or a DataLoader that does not shuffle. Inputs
            are a tensor, or a tuple, list or dict of the model's arguments. They are brought to the model's device.
        parameters: Of the model's; those that require gradients, if left out.
        micro_batch: Samples in one pass, for a bound on memory; whole batches, if left out. Changes the loss of a model in which samples
            meet also in evaluation mode, such as by a batch norm that tracks no running statistics.
        group: Workers that each have their own share of the samples and equal weights; all of them make every call. None for one alone.
        training: Whether the model is in training mode. Batch norm then normalises each micro-batch by its own statistics, so that the loss
            is that of micro-batches, weighted by their samples, and depends on `micro_batch`; dropout draws the same at every pass.
        memory_bytes: Most that graphs may take between calls; if those of all samples do, later calls take about half the time. 0 for none.

    Raises:
        UserError: If there are no parameters, they are sharded, of low precision or on several devices, or the batches can't be read twice.
            At the first product: if it is wrong by a finite difference of gradients on 8 samples, in float64 (a wrong second derivative of
            some operation), or if a scalar loss that is pooled is not the plain mean over samples (`ignore_index`, class weights).

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> squared = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    >>> Hessian(model, squared, [(x, torch.zeros(2))])(torch.ones(1))  # 2 x^2, the mean of 2 and 18
    tensor([10.])
    """

    _gradient_comes_along = True
    _by_difference = staticmethod(hessian_by_difference)

    def _linearised(self, graph: Graph) -> Linearised | None:
        return hessian_times(graph.loss, graph.weights)
