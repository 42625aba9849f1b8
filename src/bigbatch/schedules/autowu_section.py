"""AutoWU in a recipe. Nothing here imports numpy before it is built: recipes need none."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bigbatch.core.methods import WARMUPS
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count
from bigbatch.recipe.sections import WarmupSection

if TYPE_CHECKING:
    from bigbatch.schedules.autowu import AutoWU

Open = Annotated[float, Field(gt=0, lt=1)]


class AutoWUSection(WarmupSection):
    """The rate grows exponentially until the loss turns, at most to the peak; goes back to where the loss was lowest; and decays."""

    learns: ClassVar[bool] = True

    kind: Literal["autowu"] = "autowu"
    grow_from: Open = 1e-5  # of the peak rate
    share: Open = 0.5  # of the run: the longest warm-up
    decay: Literal["cosine", "constant_cosine"] = "cosine"  # from there to the end; in the last fifth of the run only
    tests: Count = 120  # in the whole run
    patience: Count = 3  # tests in a row that must find a minimum
    confidence: Open = 0.95
    return_to_minimum: bool = False  # ours: with the rate, weights and optimizer state go back; also where the loss is not finite

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse what sets the rate too, and workers that don't share a state that can go back."""
        comm, rule = recipe.comm, recipe.batch.rule
        if comm.kind == "parameter_server":
            raise ValueError(
                'schedule.warmup.kind = "autowu" with comm.kind = "parameter_server": its workers go on before a loss is known; set '
                'comm.kind = "all_reduce"'
            )
        if rule is not None and (rule.kind == "adascale" or getattr(rule, "follows", "clock") == "decay"):
            raise ValueError(f'schedule.warmup.kind = "autowu" with batch.rule.kind = "{rule.kind}": both set the rate; leave one out')
        plain = comm.kind == "all_reduce" and recipe.get("comm.compression.kind") in (None, "fp16", "bf16")
        if self.return_to_minimum and not plain:
            raise ValueError(
                f'schedule.warmup.return_to_minimum with comm.kind = "{comm.kind}": takes back what all workers share, and here each has '
                'state of its own; set comm.kind = "all_reduce" without a compression that makes up for errors, or leave it out'
            )


@WARMUPS.register("autowu", AutoWUSection)
def build(w: AutoWUSection, recipe: Recipe) -> "AutoWU":
    """The recipe's warm-up and decay."""
    from bigbatch.schedules.autowu import AutoWU

    return AutoWU(total_samples=recipe.total_samples, **w.model_dump(exclude={"kind", "return_to_minimum"}))
