"""torch's own AdamW in a recipe. Nothing here imports torch before it is built: plans need none."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.recipe.base import Positive
from bigbatch.recipe.sections import Betas, UniformDecay

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW


class AdamWSection(UniformDecay):
    """torch.optim.AdamW: weight decay is applied to the weights, times the rate."""

    published_decay: ClassVar[float] = 0.01  # torch's

    name: Literal["adamw"] = "adamw"
    betas: Betas = (0.9, 0.999)
    eps: Positive = 1e-8

    @property
    def decay_divisor(self) -> float:
        """Decay is the rate times it."""
        return 1.0


@OPTIMIZERS.register("adamw", AdamWSection)
def build(o: AdamWSection, model: "nn.Module", _: Any) -> "AdamW":
    """The optimizer at its peak rate."""
    from torch.optim import AdamW

    from bigbatch.optim.decay_groups import decay_groups

    return AdamW(decay_groups(model, o), lr=o.lr, betas=o.betas, eps=o.eps)
