"""[batch.rule]: what sets the batch of the next update, and how the rate goes with it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bigbatch.recipe.base import Count, Fraction, Positive, Section, check_inputs

CoScaling = Literal["none", "linear", "sqrt", "gain"]
"""What the rate is multiplied by when the batch is k times the recipe's: 1, k, the root of k, AdaScale's gain."""


class Scheduled(Section):
    """Known beforehand: nothing is measured."""

    largest: Count | None = None  # samples; a tenth of the training set if left out


class IncreaseBatch(Scheduled):
    """Where the schedule's decay would lower the rate, the batch grows instead; what no longer fits `largest` lowers the rate."""

    kind: Literal["increase_batch"] = "increase_batch"


class AdaBatch(Scheduled):
    """The batch grows by `batch_factor`, and the rate shrinks by `lr_factor`, every `every_epochs`."""

    kind: Literal["adabatch"] = "adabatch"
    every_epochs: Positive = 20.0
    batch_factor: Annotated[float, Field(gt=1)] = 2.0
    lr_factor: Fraction = 0.75


class Measured(Section):
    """Decides now and then by what gradients say; at most doubles or halves the batch at once."""

    smallest: Count | None = None  # samples; the recipe's batch if left out
    largest: Count | None = None  # samples; a tenth of the training set if left out
    multiple_of: Count | None = None  # samples; the normalisation group, the micro-batch, or 16
    every_updates: Count = 20  # between two decisions
    lr: CoScaling = "sqrt"


class NoiseScaleRule(Measured):
    """The root of `exchange_rate` times the noise scale."""

    kind: Literal["noise_scale"] = "noise_scale"
    exchange_rate: Positive = 1000.0  # samples that may be spent to save one update


class NormTest(Measured):
    """Grows until the noise of the gradient is at most `theta` times its norm."""

    kind: Literal["norm_test"] = "norm_test"
    theta: Annotated[float, Field(gt=0, lt=1)] = 0.7  # at 0.7 the batch grows to about the noise scale
    lr: CoScaling = "none"


class InnerProductTest(Measured):
    """Grows until samples agree with the mean gradient in direction, and across it."""

    kind: Literal["inner_product_test"] = "inner_product_test"
    theta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    nu: Positive = 5.84
    lr: CoScaling = "none"


class CABS(Measured):
    """Rate times noise over loss."""

    kind: Literal["cabs"] = "cabs"
    lr: CoScaling = "none"


class SimiGrad(Measured):
    """Keeps the cosine between the gradients of two halves of the batch at `target`."""

    kind: Literal["simigrad"] = "simigrad"
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5


class DiveBatch(Measured):
    """`delta` times the diversity of the gradients, once an epoch; grows only."""

    kind: Literal["divebatch"] = "divebatch"
    delta: Positive = 1.0
    every_updates: Count | None = None  # type: ignore[assignment]  # None: an epoch


class Goodput(Measured):
    """The batch with the most useful samples a second, by the time of an update and the noise scale.

    With times that are measured, on the first worker's clock, decisions are not those of another run: give both times for that.
    """

    kind: Literal["goodput"] = "goodput"
    alpha_s: Positive | None = None  # seconds of an update, of any size; measured if left out
    beta_s_per_sample: Positive | None = None
    lr: CoScaling = "gain"


class ABSA(Section):
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


class AdaScale(Section):
    """The batch is fixed; the rate is the schedule's at `base_batch` times a gain, and the schedule and the budget count by it."""

    kind: Literal["adascale"] = "adascale"
    base_batch: Count  # samples; the batch that the rate and the budget were tuned at


AnyBatchRule = Annotated[
    IncreaseBatch | AdaBatch | NoiseScaleRule | NormTest | InnerProductTest | CABS | SimiGrad | DiveBatch | Goodput | ABSA | AdaScale,
    Field(discriminator="kind"),
]
BATCH_RULES: dict[str, type[Section]] = {
    "increase_batch": IncreaseBatch,
    "adabatch": AdaBatch,
    "noise_scale": NoiseScaleRule,
    "norm_test": NormTest,
    "inner_product_test": InnerProductTest,
    "cabs": CABS,
    "simigrad": SimiGrad,
    "divebatch": DiveBatch,
    "goodput": Goodput,
    "absa": ABSA,
    "adascale": AdaScale,
}
