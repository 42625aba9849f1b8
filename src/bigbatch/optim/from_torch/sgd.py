"""torch's own SGD in a recipe. Nothing here imports torch before it is built: plans need none."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from bigbatch.core.methods import OPTIMIZERS
from bigbatch.recipe.base import Momentum
from bigbatch.recipe.sections import UniformDecay

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import SGD


class SGDSection(UniformDecay):
    """torch.optim.SGD: the rate stays outside the momentum buffer."""

    name: Literal["sgd"] = "sgd"
    momentum: Momentum = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs momentum > 0")
        return self

    @property
    def decay_divisor(self) -> float:
        """Decay is added to the gradient, so momentum sums it."""
        return 1 - self.momentum


@OPTIMIZERS.register("sgd", SGDSection)
def build(o: SGDSection, model: "nn.Module", _: Any) -> "SGD":
    """The optimizer at its peak rate."""
    from torch.optim import SGD

    from bigbatch.optim.decay_groups import decay_groups

    return SGD(decay_groups(model, o), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov)
