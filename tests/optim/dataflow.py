"""What a forward pass does with each parameter, seen from below: which tensors enter which products, by running it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution", "dot", "mv", "addmv", "mkldnn_rnn_layer", "_grouped_mm"}
VIEWS = {"t", "transpose", "view", "select", "slice", "split", "split_with_sizes", "permute", "expand", "unsqueeze", "squeeze"}
VIEWS |= {"_unsafe_view", "clone", "alias", "detach", "unbind", "_to_copy", "index", "as_strided", "_reshape_alias", "copy"}


class Dataflow(TorchDispatchMode):
    """Follows each parameter through views, and each product's output through everything.

    Attributes:
        multiplied: Names of parameters that an activation was multiplied by.
        consumed: Names of those whose product went into another product with a parameter.
    """

    def __init__(self, model):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.multiplied, self.consumed = set(), set()
        self._view_of, self._made_by, self._kept = {}, {}, []

    def parameter(self, tensor):
        return self.names.get(id(tensor)) or self._view_of.get(id(tensor))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        parameters = [p for t in given if (p := self.parameter(t))]
        sources = set().union(*(self._made_by.get(id(t), set()) for t in given if not self.parameter(t)))
        if name in PRODUCTS and parameters:
            activations = [t for t in given if not self.parameter(t)]
            matrices = {p for t in given if (p := self.parameter(t)) and t.ndim > 1}
            if activations:
                self.multiplied |= matrices
                self.consumed |= sources
                sources = matrices
        if name in VIEWS and len(parameters) == 1 and not sources:
            for t in made:
                self._view_of[id(t)] = parameters[0]
        else:
            for t in made:
                self._made_by[id(t)] = set(sources)
        self._kept += given + made  # so that no id is used twice
        return out

    def makes(self, outputs):
        """Parameters whose product an output is made of, and no later product's."""
        found = set()
        for t in tree_leaves(outputs):
            if isinstance(t, torch.Tensor):
                found |= self._made_by.get(id(t), set())
        return found - self.consumed


@torch.no_grad()
def dataflow(model, *args, **kwargs):
    """Parameters that multiply activations, and those of the output layer."""
    model = model.eval()
    with Dataflow(model) as flow:
        out = model(*args, **kwargs)
    return flow.multiplied, flow.makes(out)
