r"""ABSA: grow the batch, and the rate with it, when the curvature has fallen; train on some adversarial samples until then.

Paper:   Yao, Gholami, Arfeen, Liaw, Gonzalez, Keutzer, Mahoney 2018, Large Batch Size Training of Neural Networks with Adversarial
         Training and Second-Order Information, arXiv:1810.01021, Section 3, Algorithm 1; periods and shares as in its released code.
Formula: with the top eigenvalue l of the Hessian at the end of each epoch, and l_ref that of the first,
             l <= l_ref / 2                        ->  l_ref = l, increase
             else 10 epochs since the last increase -> increase
         where an increase makes the batch B twice as large and the rate too, and halves the share s of adversarial samples in a batch;
         at the largest batch s is zero and l is no longer looked at, and s is zero from half of the run on.
Units:   B in samples; l in loss per squared weight; s in [0, 1], of a batch's samples.
Differs: epochs are periods of any length, so that short runs can have as many. The factors of the fall and of the growth are two settings.
         An l that is not finite or not positive says nothing: the reference stays, the time goes on. The last increase stops at the largest
         batch, whatever factor is left. Ours, and off: `rises` lets the reference follow l upwards, so that a fall counts from the sharpest
         point since the last increase; curvature often grows at first, and l_ref of the first epoch is then never halved.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from bigbatch.batching.decision import Bounds, check_growing
from bigbatch.core.checks import UserError, check_fraction, check_positive
from bigbatch.core.methods import BATCH_RULES
from bigbatch.core.paper import Paper
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count, Fraction, Positive, check_inputs
from bigbatch.recipe.batch_rules import BatchRuleSection

PAPER = Paper(
    method="ABSA",
    title="Large Batch Size Training of Neural Networks with Adversarial Training and Second-Order Information",
    authors="Yao et al.",
    year=2018,
    arxiv="1810.01021",
    where="Section 3, Algorithm 1",
    study="studies/absa",
)
PAPERS_RATIO = 128
"""Largest batch over the first one."""


class Standing(NamedTuple):
    """Where the rule stands between two measurements."""

    reference: float = math.nan  # l_ref, above zero; NaN before the first eigenvalue that says something
    increases: int = 0  # so far
    waited: int = 0  # periods since the last increase, or since the start


def absa(
    standing: Standing, eigenvalue: float, *, patience: int = 10, drop: float = 2.0, rises: bool = False, periods: int = 1
) -> Standing:
    """Where the rule stands after a measurement.

    Args:
        standing: Before it.
        eigenvalue: l.
        patience: Periods without an increase after which there is one in any case.
        drop: l_ref / l from which on the batch is increased.
        rises: Whether the reference follows l upwards.
        periods: Since the measurement before.

    >>> absa(Standing(reference=8.0, waited=3), 4.0)  # halved
    Standing(reference=4.0, increases=1, waited=0)
    >>> absa(Standing(reference=8.0, waited=3), 5.0)
    Standing(reference=8.0, increases=0, waited=4)
    >>> absa(Standing(reference=8.0, waited=9), 5.0)  # 10 periods without
    Standing(reference=8.0, increases=1, waited=0)
    """
    reference, increases, waited = standing.reference, standing.increases, standing.waited + periods
    tells = math.isfinite(eigenvalue) and eigenvalue > 0
    if tells and math.isnan(reference):
        reference = eigenvalue
    if tells and eigenvalue <= reference / drop:
        return Standing(eigenvalue, increases + 1)
    if waited >= patience:
        return Standing(reference, increases + 1)
    return Standing(max(reference, eigenvalue) if tells and rises else reference, increases, waited)


def grown_batch(global_batch: int, increases: int, largest: int, *, factor: float = 2.0, multiple_of: int = 1) -> int:
    """The batch after so many increases, samples.

    Args:
        global_batch: B at the start, samples; a multiple of `multiple_of`.
        increases: So far.
        largest: Largest batch, samples.
        factor: Of one increase.
        multiple_of: The batch is rounded to the nearest multiple of it within B and `largest`.

    >>> [grown_batch(128, increases, 1000, multiple_of=128) for increases in range(5)]
    [128, 256, 512, 896, 896]
    """
    return Bounds(global_batch, largest, multiple_of).nearest(min(global_batch * factor**increases, largest))


def share_left(share: float, increases: int, *, factor: float = 2.0) -> float:
    """The adversarial share after so many increases.

    >>> share_left(0.2, 2)
    0.05
    """
    return share / factor**increases


class ABSA:
    """The rule over a run.

    Args:
        global_batch: B at the start, samples; a multiple of `multiple_of`.
        largest: Largest batch, samples; the paper's is 128 times the first.
        multiple_of: Batches are rounded to multiples of it, the largest downwards.
        patience: As in `absa`.
        drop: As in `absa`.
        factor: Of the batch in an increase; the adversarial share is divided by it.
        share: Adversarial share at the start, in [0, 1]; 0 for none.
        off_at: Part of the run from which on the share is zero, in [0, 1].
        rises: As in `absa`.

    Raises:
        UserError: If a setting is out of range.

    >>> rule = ABSA(global_batch=128, largest=512)
    >>> for eigenvalue in (8.0, 3.0, 3.5, 1.0):
    ...     _ = rule.measured(eigenvalue)
    ...     rule.global_batch, rule.share(0.1), rule.watching
    (128, 0.2, True)
    (256, 0.1, True)
    (256, 0.1, True)
    (512, 0.0, False)
    """

    def __init__(
        self,
        *,
        global_batch: int,
        largest: int,
        multiple_of: int = 1,
        patience: int = 10,
        drop: float = 2.0,
        factor: float = 2.0,
        share: float = 0.2,
        off_at: float = 0.5,
        rises: bool = False,
    ) -> None:
        check_growing(global_batch, largest, multiple_of)
        check_positive("patience", patience, "10 is the paper's")
        check_fraction("share", share)
        check_fraction("off_at", off_at)
        for name, value in (("drop", drop), ("factor", factor)):
            if not 1 < value < math.inf:
                raise UserError(f"{name} = {value:g}: must be a number above 1, or nothing would ever change; 2 is the paper's")
        self._base, self._bounds = global_batch, Bounds(global_batch, largest, multiple_of)
        self._settings: dict[str, Any] = {"patience": patience, "drop": drop, "rises": rises}
        self._factor, self._share, self._off_at = factor, share, off_at
        self.standing = Standing()

    @property
    def global_batch(self) -> int:
        """Samples of the next update."""
        _, largest, multiple_of = self._bounds
        return grown_batch(self._base, self.standing.increases, largest, factor=self._factor, multiple_of=multiple_of)

    @property
    def watching(self) -> bool:
        """Whether the batch can still grow, so that another eigenvalue would matter."""
        return self.global_batch < self._bounds.nearest(self._bounds.largest)

    def measured(self, eigenvalue: float, periods: int = 1) -> str:
        """Judge a measurement; arguments are those of `absa`.

        Returns:
            What came of it, in words.
        """
        before, self.standing = self.standing, absa(self.standing, eigenvalue, periods=periods, **self._settings)
        told = f"top eigenvalue {eigenvalue:.4g}, " + ("the first" if math.isnan(before.reference) else f"reference {before.reference:.4g}")
        if self.standing.increases == before.increases:
            return told
        if self.standing.reference < before.reference:
            return f"{told}: fallen to 1/{self._settings['drop']:g}"
        return f"{told}: {before.waited + periods} periods without an increase"

    def share(self, progress: float) -> float:
        """The adversarial share of the next batch.

        Args:
            progress: Part of the run that is over, in [0, 1].
        """
        if not self.watching or progress >= self._off_at:
            return 0.0
        return share_left(self._share, self.standing.increases, factor=self._factor)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        return self.standing._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.standing = Standing(**state)


class ABSASection(BatchRuleSection):
    """Batch and rate double when the Hessian's top eigenvalue has halved, or after a while without; some samples are adversarial.

    Defaults are the paper's, but for the number of samples that the eigenvalue is of (it takes 128).
    """

    kind: Literal["absa"] = "absa"
    largest: Count | None = None  # samples; 128 times the recipe's batch if left out, at most the training set
    every_epochs: Positive = 1.0  # between two looks at the eigenvalue
    patience_epochs: Positive = 10.0  # after which the batch is increased in any case; rounded up to whole looks
    drop: Annotated[float, Field(gt=1)] = 2.0  # of the eigenvalue since the reference
    factor: Annotated[float, Field(gt=1)] = 2.0  # that the batch is multiplied by, and the adversarial share divided
    rises: bool = False  # ours: the reference follows the eigenvalue upwards
    lr: Literal["none", "linear", "sqrt"] = "linear"
    samples: Count = 512  # of the training set that the eigenvalue is of
    tolerance: Positive = 0.05  # of the eigenvalue's residual
    share: Fraction = 0.2  # of a batch's samples that adversarial examples replace at first; 0: none
    off_at: Fraction = 0.5  # part of the run from which on there are none
    eps: Positive = 0.005  # size of the step, as a part of the data's range
    low: float | None = None  # least and
    high: float | None = None  # largest value of an input; if left out, those of the training set, of each channel of images

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.patience_epochs < self.every_epochs:
            raise ValueError(
                f"patience_epochs = {self.patience_epochs:g}: is over before the first look, after every_epochs = {self.every_epochs:g}; "
                "look more often, or wait longer"
            )
        check_inputs(self.low, self.high)
        return self

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse workers without one set of weights."""
        if recipe.comm.kind != "all_reduce":
            raise ValueError(
                f'batch.rule.kind = "absa" with comm.kind = "{recipe.comm.kind}": the curvature is that of one set of weights, whole on '
                'every worker; set comm.kind = "all_reduce"'
            )


@BATCH_RULES.register("absa", ABSASection)
def build(rule: ABSASection, recipe: Recipe, bounds: Bounds) -> ABSA:
    """The recipe's rule."""
    return ABSA(
        global_batch=recipe.batch.global_batch,
        largest=min(rule.largest or PAPERS_RATIO * recipe.batch.global_batch, recipe.num_train_samples),
        multiple_of=bounds.multiple_of,
        patience=math.ceil(rule.patience_epochs / rule.every_epochs - 1e-9),
        drop=rule.drop,
        factor=rule.factor,
        share=rule.share,
        off_at=rule.off_at,
        rises=rule.rises,
    )
