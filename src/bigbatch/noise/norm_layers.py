r"""The noise scale of norm layers alone: a cheap stand-in for that of a whole transformer.

Paper:   Gray et al. 2024, Normalization Layer Per-Example Gradients are Sufficient to Predict Gradient Noise Scale in Transformers,
         arXiv:2411.00999, Section 4.
Formula: B_norms = sum_l tr(S_l) / sum_l |G_l|^2 over the norm layers l,   B_simple ~ slope B_norms
         with a slope that is fitted once for an architecture, where both were measured.
Units:   samples, in both.
Differs: the paper takes the norm of each sample's gradient, in a kernel of its own; here groups are micro-batches (`NoiseScaleMonitor`),
         which is unbiased too and has more scatter. No slope is built in: text/gpt had 3.2 in its warm-up and 1.1 to 1.5 after it
         (benchmarks/noise_of_language_models.json).
Limits:  an observation on transformers, no theorem: it says which way the noise scale goes, and its level only with the slope.
"""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from bigbatch.core.checks import UserError
from bigbatch.core.paper import Paper
from bigbatch.core.tensors.groups import is_norm

PAPER = Paper(
    method="Noise scale of norm layers",
    title="Normalization Layer Per-Example Gradients are Sufficient to Predict Gradient Noise Scale in Transformers",
    authors="Gray et al.",
    year=2024,
    arxiv="2411.00999",
    where="Section 4",
)

NORMS: Literal["norms"] = "norms"
"""What records call the part of a model that norm layers are."""


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Trainable gains and biases of a model's norm layers: for `NoiseScaleMonitor(model, only=...)`.

    Args:
        model: With torch's norm layers, or classes named after one (LlamaRMSNorm); see `bigbatch.core.tensors.groups.is_norm`.

    Raises:
        UserError: If it has none that are trained.

    >>> [tuple(p.shape) for p in norm_parameters(nn.Sequential(nn.Linear(2, 3), nn.RMSNorm(3), nn.Linear(3, 1)))]
    [(3,)]
    """
    norms = [module for module in model.modules() if is_norm(module)]
    own = {id(p): p for module in norms for p in module.parameters(recurse=False) if p.requires_grad}
    if not own:
        raise UserError(f"{type(model).__name__}: has no norm layers that are trained, so none can be measured alone; measure the whole")
    return list(own.values())


def slope(norms: Sequence[float], wholes: Sequence[float]) -> float:
    """Least squares through the origin: what to multiply the noise scale of norm layers by.

    Args:
        norms: B_norms at several points of training, samples.
        wholes: B_simple at the same points.

    Raises:
        UserError: If they are not as many, or all of `norms` are zero.

    >>> slope([10.0, 20.0], [15.0, 30.0])
    1.5
    """
    power = sum(b * b for b in norms)
    if len(norms) != len(wholes) or not power > 0:
        raise UserError(f"{len(norms)} noise scales of norm layers and {len(wholes)} of the whole: must be as many, and some above zero")
    return sum(b * whole for b, whole in zip(norms, wholes, strict=True)) / power
