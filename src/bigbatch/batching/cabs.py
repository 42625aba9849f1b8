r"""CABS, coupled adaptive batch size: the batch is the rate times the noise over the loss.

Paper:   Balles, Romero, Hennig 2016, Coupling Adaptive Batch Sizes with Learning Rates, arXiv:1612.05086.
Formula: B = e tr(S) / F,  with the rate e, the sum of the gradient's variances over coordinates tr(S), and the loss F; tr(S) and F
         are exponential means with decay 0.95.
Units:   samples. The formula has no scale of its own: F must have the lower bound 0, and twice the loss is not the same run.
Differs: both means have their start-up bias taken out; the authors' code starts them at 0 and 1 and leaves it in. tr(S) comes from
         groups of samples and may be negative in one update. The authors' bounds of 16 and 2048 are the caller's.
Limits:  for SGD without momentum. A loss with a floor above zero (label smoothing, noise in the labels) holds the batch small.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from bigbatch.batching.decision import Proposal, UpdateMeasurement
from bigbatch.batching.smoothed import SmoothedRule
from bigbatch.core.checks import UserError
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe.batch_rules import CoScaling, Measured

PAPER = Paper(
    method="CABS",
    title="Coupling Adaptive Batch Sizes with Learning Rates",
    authors="Balles, Romero, Hennig",
    year=2016,
    arxiv="1612.05086",
    where="the CABS rule",
    study="studies/adaptive_batch",
)


def cabs(lr: float, noise: float, loss: float) -> float:
    """B = e tr(S) / F, samples.

    Args:
        lr: e, the rate.
        noise: tr(S), averaged, 0 or more.
        loss: F, averaged, 0 or more.

    Returns:
        The batch; infinity at a loss of zero.

    Raises:
        UserError: If `loss` is negative.

    >>> cabs(lr=0.1, noise=400.0, loss=0.5)
    80.0
    """
    if loss < 0:
        raise UserError(f"loss = {loss:g}: CABS divides by the loss and needs one whose lower bound is 0; use another rule for this loss")
    return lr * noise / loss if loss else math.inf


class CABS(SmoothedRule):
    """Wishes for the rate times the noise over the loss, up and down.

    Args:
        decay: Of the running means of noise and loss; 0.95 is the paper's.

    Raises:
        UserError: If `decay` is out of range; from `wish`, if the mean loss is negative.
    """

    def __init__(self, *, decay: float = 0.95) -> None:
        super().__init__(decay, also=("loss",))
        self._lr: float | None = None

    def observe(self, seen: UpdateMeasurement) -> None:
        """Take notice of an update."""
        super().observe(seen)
        if math.isfinite(seen.lr):
            self._lr = seen.lr

    def propose(self, global_batch: int) -> Proposal | None:  # noqa: ARG002  the present batch does not matter here
        """The batch at the last rate seen; None before 20 updates, or while no rate was seen."""
        if not self.smoothed.ready or self._lr is None:
            return None
        noise, loss = self.smoothed.noise, self.smoothed.mean("loss")
        return Proposal(cabs(self._lr, noise, loss), f"rate {self._lr:.3g} times noise {noise:.3g} over loss {loss:.3g}")

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        return {**super().state_dict(), "lr": self._lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        super().load_state_dict(state)
        self._lr = state["lr"]


class CABSSection(Measured):
    """Rate times noise over loss."""

    kind: Literal["cabs"] = "cabs"
    lr: CoScaling = "none"


@BATCH_RULES.register("cabs", CABSSection)
def build(*_: Any) -> CABS:
    """The recipe's rule."""
    return CABS()
