"""A micro-batch, evaluated on stand-ins for the model's parameters and buffers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from bigbatch.core.checks import NotFinite, UserError
from bigbatch.core.tensors.structure import arguments
from bigbatch.curvature.products.fixed_batches import Piece
from bigbatch.curvature.products.plain_mean import check_plain_mean
from bigbatch.curvature.products.preserve_state import drawing_from
from bigbatch.curvature.second_derivatives.replaced_layers import FastSecondDerivatives

Loss = Callable[[Any, Any], Tensor]
"""Takes outputs and targets of n samples and gives their n losses, or the mean of them."""


class Graph(NamedTuple):
    """What a micro-batch gives, with its graph where gradients are enabled."""

    weights: list[Tensor]  # stand-ins of the chosen parameters: the graph's leaves
    outputs: Any
    loss: Tensor  # sum over the samples, scalar
    doubt: str | None = None  # why a scalar loss can't be pooled with others


def evaluated(model: nn.Module, loss: Loss, piece: Piece, weights: dict[str, Tensor], chosen: Sequence[str]) -> Graph:
    """Outputs and summed loss, with random numbers that are the same for a piece at every pass.

    Args:
        model: Takes copies of its buffers for the pass, as it may write to them.
        loss: See `Loss`.
        piece: Its inputs are the model's argument; or a tuple or list of its arguments, or a dict of its keyword arguments.
        weights: Parameters to use instead of the model's, by name.
        chosen: Names of those that the graph is about.

    Raises:
        UserError: If the loss is neither one a sample nor a scalar, or not finite.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    args, kwargs = arguments(piece.inputs)
    with drawing_from(piece.number, model), FastSecondDerivatives():
        outputs = functional_call(model, weights | buffers, args, kwargs)
        value = loss(outputs, piece.targets)
        total = summed(value, piece, "loss")
        doubt = check_plain_mean(loss, outputs, piece.targets, value, piece.samples)
    return Graph([weights[name] for name in chosen], outputs, total, doubt)


def refuse_sums(loss: Loss) -> None:
    """Refuse a loss of torch's that sums over samples: a scalar is taken for their mean.

    Raises:
        UserError: If its `reduction` is "sum".
    """
    if "sum" in (getattr(loss, "reduction", None), getattr(loss, "keywords", {}).get("reduction")):
        raise UserError('loss: reduction = "sum": a scalar is taken for the mean over samples; use "none" or "mean"')


def summed(value: Any, piece: Piece, what: str) -> Tensor:
    """The sum over samples of their losses or scores, or of their mean.

    Raises:
        UserError: If there is neither one a sample nor a scalar, or the sum is not finite; it is called `what` then.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape not in ((), (piece.samples,)):
        told = f"of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(f"{what} of batch {piece.batch} is {told}: must be one a sample, ({piece.samples},), or their mean, ()")
    total = value * piece.samples if value.dim() == 0 else value.sum()
    if not total.isfinite():
        raise NotFinite(f"{what} of batch {piece.batch} is {total.detach():g}: must be finite; look at the weights and the data")
    return total
