"""[batch.rule]: what sets the batch of the next update, and how the rate goes with it; each rule's own fields are in its file."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

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

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches that it names, and that updates are to have, samples."""
        return ()

    @property
    def last_change_samples(self) -> int:
        """Samples of the run at which it has reached the last of these, if it says so; else 0."""
        return 0

    def check_recipe(self, recipe: Any) -> None:
        """Refuse batches that do not fit the training set, the first batch or the normalisation groups."""
        first, ghost, epoch = recipe.batch.global_batch, recipe.batch.ghost_batch, recipe.num_train_samples
        for batch in self.batches:
            said = f"batch.rule: a batch of {batch:,}"
            if batch > epoch:
                raise ValueError(f"{said} is larger than the training set of {epoch:,} samples; choose one that fits into it")
            if batch < first:
                raise ValueError(f"{said} is smaller than global_batch = {first:,}, at which the run begins; give a larger one")
            if isinstance(ghost, int) and first % ghost == 0 and batch % ghost:
                raise ValueError(
                    f"{said} is not a multiple of ghost_batch = {ghost}: one normalisation group of each update would have another "
                    f"size; take {max(first, batch // ghost * ghost):,}"
                )


class UpToLargest(Scheduled):
    """Grows by itself until it meets a bound."""

    largest: Count | None = None  # samples; a tenth of the training set if left out


class Measured(BatchRuleSection):
    """Decides now and then by what gradients say; at most doubles or halves the batch at once."""

    smallest: Count | None = None  # samples; the recipe's batch if left out
    largest: Count | None = None  # samples; a tenth of the training set if left out
    multiple_of: Count | None = None  # samples; the normalisation group, the micro-batch, or 16
    every_updates: Count = 20  # between two decisions
    lr: CoScaling = "sqrt"
