"""A parameter server in a recipe. Such a run has a launcher of its own; nothing here imports torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bigbatch.core.checks import RecipeError
from bigbatch.core.methods import COMMS
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count, Momentum, Positive
from bigbatch.recipe.sections import CommSection


class ParameterServerSection(CommSection):
    """Servers hold the weights; workers pull them, and push gradients as they get ready, or how far local steps went."""

    kind: Literal["parameter_server"] = "parameter_server"
    mode: Literal["synchronous", "asynchronous"] = "synchronous"
    staleness_bound: Annotated[int, Field(ge=0)] | None = None  # updates that a gradient may be late by; asynchronous: 16 if left out
    gradients_per_update: Count | None = None  # if left out: one a worker but for backup workers; asynchronous without these: 1
    backup_workers: Annotated[int, Field(ge=0)] = 0  # workers beyond those that an update waits for: what is too late is dropped
    damping: Literal["none", "inverse", "inverse_plus_one"] = "none"  # asynchronous: of stale gradients
    reduction: Literal["mean", "sum"] = "mean"  # of an update's gradients; "sum" takes the rate that gives the same step
    servers: Count = 1  # over which the parameters are spread
    period: Count = 1  # updates of a worker from pull to push; above 1 it pushes how far they went, and the server steps along that
    outer_lr: Positive = 1.0  # of the server, along the mean of where workers went
    outer_momentum: Momentum = 0.0
    nesterov: bool = True  # whether the server's step looks ahead, if it has momentum

    @property
    def has_outer_optimizer(self) -> bool:
        """Whether workers step by the recipe's optimizer, and the server by an outer one; else they push gradients."""
        return self.period > 1 or self.outer_lr != 1 or self.outer_momentum != 0

    @model_validator(mode="after")
    def _fits_the_mode(self) -> Self:
        if self.label_skew:
            raise ValueError(f"label_skew = {self.label_skew:g}: samples go to whoever is free, and lie with nobody; leave it out")
        if self.mode == "asynchronous":
            if self.staleness_bound == 0:
                raise ValueError(
                    'staleness_bound = 0: no gradient could ever be late, which is mode = "synchronous"; set that, or a bound of 1 or more'
                )
        elif self.staleness_bound or self.damping != "none":
            field = f"staleness_bound = {self.staleness_bound}" if self.staleness_bound else f"damping = {self.damping!r}"
            raise ValueError(f'{field}: nothing is stale in synchronous updates; set mode = "asynchronous", or leave it out')
        if self.has_outer_optimizer and self.reduction == "sum":
            raise ValueError(
                'reduction = "sum" with an outer optimizer: its rate is of the mean of where workers went; set "mean", or leave out '
                "period, outer_lr and outer_momentum"
            )
        return self

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse what its workers don't know of."""
        if recipe.batch.noise_batch is not None:
            raise ValueError(
                f'batch.noise_batch = {recipe.batch.noise_batch}: is not known to the workers of comm.kind = "parameter_server"; leave it '
                "out, or take another comm"
            )


@COMMS.register("parameter_server", ParameterServerSection)
def build(*_: Any) -> None:
    """Refused: under torchrun there is no server.

    Raises:
        RecipeError: Always.
    """
    raise RecipeError("comm.kind = 'parameter_server' under torchrun: has a launcher of its own; use bigbatch train --workers")
