"""The sections of a recipe: their fields, units, bounds and defaults.

Those of the methods stand in the methods' own files (core/methods.py says how they are found); here is what a family's have in common.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bigbatch.core.methods import BATCH_RULES, COMMS, COMPRESSIONS, DECAYS, OPTIMIZERS, WARMUPS, Registry
from bigbatch.recipe.base import Count, Fraction, Momentum, NotNegative, Positive, Section, check_inputs
from bigbatch.recipe.batch_rules import BatchRuleSection
from bigbatch.recipe.by_name import ByName

Betas = tuple[Momentum, Momentum]
DecayGroups = Annotated[dict[str, Literal["weights", "norms_and_biases"]], Field(min_length=1)]


class OptimizerSection(Section):
    """What every optimizer has; its own section adds `name`, `groups` and the rest."""

    rates: ClassVar[tuple[str, ...]] = ("lr",)  # fields that are learning rates
    groups_by: ClassVar[Literal["decay", "muon"]] = "decay"  # how parameters are split, as in bigbatch.optim.describe_groups
    published_decay: ClassVar[float] = 0.0  # weight decay in the paper or its released recipes

    lr: Positive  # peak learning rate
    weight_decay: NotNegative = 0.0  # in the optimizer's own unit
    clip_norm: Positive | None = None  # bound on the global norm of the mean gradient of an update

    if TYPE_CHECKING:  # fields of each, at their places
        name: str
        groups: Any

    @property
    def decay_divisor(self) -> float | None:
        """An update takes lr * weight_decay / this of a weight away; None where that depends on the gradient."""
        return None


class UniformDecay(OptimizerSection):
    """One rate for all; norms and biases decay too, unless switched off."""

    decay_norms_and_biases: bool = True  # torch's habit; Goyal et al. switch it off
    groups: DecayGroups | None = None  # patterns of parameter names to what they count as


class LayerWise(OptimizerSection):
    """A rate for each layer; norms and biases are left out, unless switched on."""

    decay_norms_and_biases: bool = False
    adapt_norms_and_biases: bool = False
    groups: DecayGroups | None = None  # patterns of parameter names to what they count as


AnyOptimizer = Annotated[OptimizerSection, ByName(OPTIMIZERS, "name")]


class WarmupSection(Section):
    """A warm-up; its own section adds `kind` and the rest."""

    learns: ClassVar[bool] = False  # whether it follows the losses, and brings a decay of its own

    if TYPE_CHECKING:
        kind: str


WARMUP_UNITS = ("epochs", "samples", "updates")


class TimedWarmup(WarmupSection):
    """A warm-up of a known length, in exactly one of the fields `epochs`, `samples`, and `updates` of the recipe's batch."""

    if TYPE_CHECKING:
        epochs: float | None
        samples: int | None
        updates: int | None

    @property
    def unit(self) -> str:
        """The field that holds the length."""
        return next(name for name in WARMUP_UNITS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in WARMUP_UNITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(WARMUP_UNITS)}; got {' and '.join(given) or 'none'}")
        return self


class DecaySection(Section):
    """A decay; its own section adds `kind` and the rest."""

    if TYPE_CHECKING:
        kind: str


AnyWarmup = Annotated[WarmupSection, ByName(WARMUPS, "kind")]
AnyDecay = Annotated[DecaySection, ByName(DECAYS, "kind")]


class Schedule(Section):
    """Learning rate = optimizer.lr x warmup x decay, both pure functions of the samples consumed, but for AutoWU, which sees losses.

    "sequential": the rate warms up to its peak, then decays over what is left of the run. "product": the decay runs from the first
    sample on, also during the warm-up, so the peak is never reached. Milestones of a step decay count from the start of the run in both.
    """

    warmup: AnyWarmup = Field(default_factory=lambda: WARMUPS["none"].section())
    decay: AnyDecay = Field(default_factory=lambda: DECAYS["constant"].section())
    combine: Literal["sequential", "product"] = "sequential"

    @model_validator(mode="after")
    def _decays_once(self) -> Self:
        if self.warmup.learns and self.decay.kind != "constant":
            raise ValueError(
                f'decay.kind = "{self.decay.kind}" with warmup.kind = "{self.warmup.kind}": has a decay of its own, from where its warm-up '
                'ends; set schedule.decay.kind = "constant", and choose by schedule.warmup.decay'
            )
        return self


AnyBatchRule = Annotated[BatchRuleSection, ByName(BATCH_RULES, "kind")]


class Batch(Section):
    """How many samples go together, and for what."""

    global_batch: Count  # one update, over all workers
    ghost_batch: Count | Literal["global"] | None = None  # one normalisation group; None: the model has no batch norm
    micro_batch: Count | Literal["auto"] = "auto"  # one forward pass; "auto" measures the fastest; never changes the update
    noise_batch: Count | None = None  # multiplicative noise that makes the gradient as noisy as of so many samples; None: none
    rule: AnyBatchRule | None = None  # sets global_batch anew while the run goes on


class Budget(Section):
    """Length of the run, in exactly one unit."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    samples: Count | None = None
    updates: Count | None = None
    tokens: Count | None = None
    tokens_per_sample: Positive | None = None  # on average; with tokens, and only then

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        given = [name for name in ("epochs", "samples", "updates", "tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of epochs, samples, updates, tokens; got {' and '.join(given) or 'none'}")
        if self.tokens is not None and self.tokens_per_sample is None:
            raise ValueError(
                f"tokens = {self.tokens:,}: of how many samples, is not known; give tokens_per_sample too, such as the length of a sequence"
            )
        if self.tokens is None and self.tokens_per_sample is not None:
            raise ValueError(
                f"tokens_per_sample = {self.tokens_per_sample:g} without tokens: says nothing of a budget in {given[0]}; drop it"
            )
        return self


class Adversarial(Section):
    """Every update trains on adversarial examples of its samples too: concurrent adversarial learning."""

    eps: float  # size of the step, as a part of the data's range: 8 of 255 grey levels are 0.03
    tau: int = 1  # updates that the weights which examples are made from are old; 0: DisAdv, one after the other
    loss: Literal["sum", "mean"] | None = None  # clean and adversarial loss; if left out, "sum" with lars (the paper's), else "mean"
    share: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the adversarial loss; 1: as much as the clean one
    full_until: Fraction = 1.0  # part of the run after which the share falls
    off_at: Fraction = 1.0  # part of the run at which it is zero
    makers: Literal["self", "ranks", "stream"] = "self"  # of examples: the trainer; half of several workers; a second stream of its GPU
    low: float | None = None  # least and
    high: float | None = None  # largest value of an input; if left out, those of the training set, of each channel of images

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not 0 < self.eps <= 1:
            raise ValueError(f"eps = {self.eps:g}: must be above zero and at most 1, all of the data's range; 8 of 255 levels are 0.03")
        if self.tau < 0:
            raise ValueError(f"tau = {self.tau}: weights of updates to come are not known; set 1, or 0 for DisAdv")
        if self.off_at < self.full_until:
            raise ValueError(f"off_at = {self.off_at:g}: must not come before full_until = {self.full_until:g}; set both")
        if self.makers != "self" and self.tau == 0:
            raise ValueError(
                f'makers = "{self.makers}" with tau = 0: examples from the newest weights are waited for, whoever makes them; set tau = 1, '
                'or makers = "self"'
            )
        check_inputs(self.low, self.high)
        return self


class Augmentation(Section):
    """Images are shifted and mirrored at random, anew in every epoch."""

    padding: Annotated[int, Field(ge=0)] = 0  # pixels around an image, of which a part of the image's size is cut out
    flip: bool = False  # left and right, every other time

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.padding and not self.flip:
            raise ValueError("padding = 0 and flip = false: changes nothing; set one of them, or leave the section out")
        return self


class Curvature(Section):
    """The top of the Hessian's spectrum is looked at on the way, and recorded; it changes no bit of the run, and costs time."""

    every_updates: Count  # from one look to the next; the last update is always followed by one
    eigenvalues: Count = 1  # from the largest
    samples: Count = 512  # of the training set, the same each time; all of a smaller one
    tolerance: Positive = 1e-3  # of an eigenvalue's residual |Hv - lambda v| / |lambda|; at 1e-2 a lower one may be taken for the top
    trace: Literal[False] | Positive = False  # relative standard error to which the trace is estimated; false: not at all


class CommSection(Section):
    """What every way of several workers has; its own section adds `kind` and the rest."""

    local_steps: ClassVar[bool] = False  # whether workers take steps of their own, so that none has the mean gradient
    applies_to_one_worker: ClassVar[bool] = False  # whether it changes the steps of one worker alone too

    label_skew: Fraction = 0.0  # share of the data that lies with workers by label; 0: anyone's, anew in each epoch

    if TYPE_CHECKING:
        kind: str


class CompressionSection(Section):
    """A way to make gradients smaller before all-reduce; its own section adds `kind` and the rest."""

    if TYPE_CHECKING:
        kind: str


AnyComm = Annotated[CommSection, ByName(COMMS, "kind")]
AnyCompression = Annotated[CompressionSection, ByName(COMPRESSIONS, "kind")]

TAGS = {
    "optimizer": "name",
    "schedule.warmup": "kind",
    "schedule.decay": "kind",
    "batch.rule": "kind",
    "comm": "kind",
    "comm.compression": "kind",
}
"""The field that says which kind of a section is meant."""

KINDS: dict[str, Registry] = {
    "optimizer": OPTIMIZERS,
    "schedule.warmup": WARMUPS,
    "schedule.decay": DECAYS,
    "batch.rule": BATCH_RULES,
    "comm": COMMS,
    "comm.compression": COMPRESSIONS,
}
"""Which kinds there are."""
