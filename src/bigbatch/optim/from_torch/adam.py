"""torch's own Adam in a recipe. Nothing here imports torch before it is built: plans need none."""

from typing import TYPE_CHECKING, Any, Literal

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.recipe.base import Positive
from bigbatch.recipe.sections import Betas, UniformDecay

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Adam


class AdamSection(UniformDecay):
    """torch.optim.Adam: weight decay is added to the gradient."""

    name: Literal["adam"] = "adam"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8


@OPTIMIZERS.register("adam", AdamSection)
def build(o: AdamSection, model: "nn.Module", _: Any) -> "Adam":
    """The optimizer at its peak rate."""
    from torch.optim import Adam

    from bigbatch.optim.decay_groups import decay_groups

    return Adam(decay_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps)
