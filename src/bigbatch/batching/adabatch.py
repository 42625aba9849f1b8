r"""AdaBatch: double the batch every few epochs, and decay the rate less.

Paper:   Devarakonda, Naumov, Garland 2017, AdaBatch: Adaptive Batch Sizes for Training Deep Neural Networks, arXiv:1712.02029.
Formula: after k intervals of e epochs, with batch factor b = 2 and rate factor r = 0.75,
             B_k = min(b^k B, B_max),   rate factor (r / b)^k B_k / B
         which is r^k while the batch still grows: r / b = 0.375 per sample, as a run of fixed batch that decays by 0.375.
Units:   batches in samples; the interval in epochs.
Differs: B_max. The paper's schedules end before one is needed; here the growth that no longer happens goes into the rate, so that
         rate / batch decays by r / b at every interval whatever the bound. The paper's warm-up for large first batches is a schedule of
         its own (schedules/gradual_warmup.py).
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from bigbatch.batching.decision import BatchAndRate, Bounds, check_growing
from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.clock import Clock
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Fraction, Positive
from bigbatch.recipe.batch_rules import UpToLargest

PAPER = Paper(
    method="AdaBatch",
    title="AdaBatch: Adaptive Batch Sizes for Training Deep Neural Networks",
    authors="Devarakonda, Naumov, Garland",
    year=2017,
    arxiv="1712.02029",
    where="the method's rule",
    study="studies/adaptive_batch",
)


def adabatch(
    changes: int, *, global_batch: int, largest: int, batch_factor: float = 2.0, rate_factor: float = 0.75, multiple_of: int = 1
) -> BatchAndRate:
    """The batch and the factor of the rate after some changes.

    Args:
        changes: k, 0 or more.
        global_batch: B, the first batch, samples.
        largest: B_max, samples.
        batch_factor: b, at least 1.
        rate_factor: r, above 0.
        multiple_of: The batch is rounded to the nearest multiple of it within B and B_max, and the rate follows the rounded batch.

    Returns:
        B_k and (r / b)^k B_k / B.

    >>> adabatch(2, global_batch=128, largest=1024)
    BatchAndRate(global_batch=512, rate_factor=0.5625)
    >>> adabatch(1, global_batch=128, largest=128)  # no growth: the whole 0.375 goes into the rate
    BatchAndRate(global_batch=128, rate_factor=0.375)
    """
    try:
        grown = global_batch * batch_factor**changes
    except OverflowError:
        grown = math.inf
    batch = Bounds(global_batch, largest, multiple_of).nearest(grown)
    return BatchAndRate(batch, (rate_factor / batch_factor) ** changes * batch / global_batch)


class AdaBatch:
    """The batch and the factor of the rate, from the clock. Without state.

    Args:
        global_batch: The first, samples; a multiple of `multiple_of`.
        num_train_samples: Samples of an epoch.
        largest: Largest batch, samples.
        every_epochs: Interval between changes.
        batch_factor: What the batch is multiplied by at each change, at least 1.
        rate_factor: What the rate is multiplied by at each change that the batch takes part in.
        multiple_of: Batches are rounded to multiples of it, the largest downwards; the rate follows the rounded batch.

    Raises:
        UserError: If an argument is impossible.

    >>> grow = AdaBatch(global_batch=128, num_train_samples=1000, largest=256)
    >>> [tuple(grow.at(Clock(samples=1000 * epoch))) for epoch in (19, 20, 40)]
    [(128, 1.0), (256, 0.75), (256, 0.28125)]
    """

    def __init__(
        self,
        *,
        global_batch: int,
        num_train_samples: int,
        largest: int,
        every_epochs: float = 20,
        batch_factor: float = 2.0,
        rate_factor: float = 0.75,
        multiple_of: int = 1,
    ) -> None:
        check_positive("num_train_samples", num_train_samples)
        check_positive("every_epochs", every_epochs)
        check_positive("rate_factor", rate_factor)
        if not batch_factor >= 1:
            raise UserError(f"batch_factor = {batch_factor}: must be at least 1, AdaBatch only grows; the paper doubles, 2")
        check_growing(global_batch, largest, multiple_of)
        self.num_train_samples, self.every_epochs = num_train_samples, every_epochs
        self.global_batch, self.largest, self.multiple_of = global_batch, largest, multiple_of
        self.batch_factor, self.rate_factor = batch_factor, rate_factor

    def at(self, clock: Clock) -> BatchAndRate:
        """The batch, and the factor of the peak rate, of the update at `clock`."""
        return adabatch(
            int(clock.samples // (self.every_epochs * self.num_train_samples)),
            global_batch=self.global_batch,
            largest=self.largest,
            batch_factor=self.batch_factor,
            rate_factor=self.rate_factor,
            multiple_of=self.multiple_of,
        )


class AdaBatchSection(UpToLargest):
    """The batch grows by `batch_factor`, and the rate shrinks by `lr_factor`, every `every_epochs`."""

    kind: Literal["adabatch"] = "adabatch"
    every_epochs: Positive = 20.0
    batch_factor: Annotated[float, Field(gt=1)] = 2.0
    lr_factor: Fraction = 0.75


@BATCH_RULES.register("adabatch", AdaBatchSection)
def build(rule: AdaBatchSection, recipe: Recipe, bounds: Bounds) -> AdaBatch:
    """The recipe's rule."""
    return AdaBatch(
        global_batch=bounds.smallest,
        largest=bounds.largest,
        multiple_of=bounds.multiple_of,
        num_train_samples=recipe.num_train_samples,
        every_epochs=rule.every_epochs,
        batch_factor=rule.batch_factor,
        rate_factor=rule.lr_factor,
    )
