"""Sections that most recipes leave out: what else is trained on, and what is measured on the way."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bigbatch.recipe.base import Count, Fraction, Positive, Section, check_inputs


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

    def check_recipe(self, recipe: Any) -> None:
        """Refuse ways of working together and batches for which examples can't be made."""
        comm, batch = recipe.comm, recipe.batch
        if comm.kind != "all_reduce":
            raise ValueError(
                f'[adversarial] with comm.kind = "{comm.kind}": examples are made from the weights of an update, which are one set only '
                'with "all_reduce"; use that, or leave [adversarial] out'
            )
        if getattr(comm, "compression", None) is not None and self.makers == "ranks":
            raise ValueError(
                'comm.compression with adversarial.makers = "ranks": compresses among all workers, of which half have no gradient; leave '
                "one of them out"
            )
        if batch.noise_batch is not None:
            raise ValueError(f"batch.noise_batch = {batch.noise_batch} with [adversarial]: both weigh losses; leave one of them out")
        if batch.rule is not None:
            raise ValueError(
                f'batch.rule.kind = "{batch.rule.kind}" with [adversarial]: examples are made before their update, when its batch '
                "must be known; leave one of them out"
            )


class Augmentation(Section):
    """Images are shifted and mirrored at random, anew in every epoch."""

    padding: Annotated[int, Field(ge=0)] = 0  # pixels around an image, of which a part of the image's size is cut out
    flip: bool = False  # left and right, every other time

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.padding and not self.flip:
            raise ValueError("padding = 0 and flip = false: changes nothing; set one of them, or leave the section out")
        return self

    def check_recipe(self, recipe: Any) -> None:
        """Refuse workers that read samples by themselves."""
        if recipe.comm.kind == "parameter_server":
            raise ValueError(
                '[augmentation] with comm.kind = "parameter_server": its workers read plain samples; use another, or leave it out'
            )


class Curvature(Section):
    """The top of the Hessian's spectrum is looked at on the way, and recorded; it changes no bit of the run, and costs time."""

    every_updates: Count  # from one look to the next; the last update is always followed by one
    eigenvalues: Count = 1  # from the largest
    samples: Count = 512  # of the training set, the same each time; all of a smaller one
    tolerance: Positive = 1e-3  # of an eigenvalue's residual |Hv - lambda v| / |lambda|; at 1e-2 a lower one may be taken for the top
    trace: Literal[False] | Positive = False  # relative standard error to which the trace is estimated; false: not at all

    def check_recipe(self, recipe: Any) -> None:
        """Refuse workers that hold parts of the weights."""
        kind = recipe.comm.kind
        if kind in ("parameter_server", "fully_shard"):
            raise ValueError(
                f'[curvature] with comm.kind = "{kind}": needs whole weights on every worker; set comm.kind = "all_reduce", or look at the '
                "run's checkpoints by `bigbatch curvature`"
            )
