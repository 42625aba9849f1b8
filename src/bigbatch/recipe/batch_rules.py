"""[batch.rule]: what sets the batch of the next update, and how the rate goes with it; each rule's own fields are in its file."""

from typing import TYPE_CHECKING, ClassVar, Literal

from bigbatch.recipe.base import Count, Section

CoScaling = Literal["none", "linear", "sqrt", "gain"]
"""What the rate is multiplied by when the batch is k times the recipe's: 1, k, the root of k, AdaScale's gain."""


class BatchRuleSection(Section):
    """What sets the batch; a rule's own section adds `kind` and the rest."""

    if TYPE_CHECKING:
        kind: str


class Scheduled(BatchRuleSection):
    """Known beforehand: nothing is measured."""

    follows: ClassVar[Literal["decay", "clock"]] = "clock"  # what the rule is given: the factor of the rate's decay, or the clock

    largest: Count | None = None  # samples; a tenth of the training set if left out


class Measured(BatchRuleSection):
    """Decides now and then by what gradients say; at most doubles or halves the batch at once."""

    smallest: Count | None = None  # samples; the recipe's batch if left out
    largest: Count | None = None  # samples; a tenth of the training set if left out
    multiple_of: Count | None = None  # samples; the normalisation group, the micro-batch, or 16
    every_updates: Count = 20  # between two decisions
    lr: CoScaling = "sqrt"
