"""Outer optimizers in a recipe. Nothing here imports torch before it is built: plans name these sections, and need none."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from bigbatch.core.methods import COMMS, COMPRESSIONS
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Count, Fraction, Momentum, Positive
from bigbatch.recipe.sections import AnyCompression, CommSection

if TYPE_CHECKING:
    from torch import nn

    from bigbatch.comm.local.diloco import DiLoCo
    from bigbatch.comm.local.muloco import MuLoCo
    from bigbatch.comm.local.noloco import NoLoCo
    from bigbatch.comm.local.streaming_diloco import StreamingDiLoCo
    from bigbatch.comm.ranks import Ranks


class OuterSection(CommSection):
    """What the outer optimizers that step along the mean of all workers have in common."""

    local_steps: ClassVar[bool] = True
    applies_to_one_worker: ClassVar[bool] = True

    period: Count = 30  # inner updates between two exchanges
    start_updates: Annotated[int, Field(ge=0)] = 0  # of all-reduce, before
    outer_lr: Positive = 0.7
    outer_momentum: Momentum = 0.9
    nesterov: bool = True
    compression: AnyCompression | None = None  # of the displacements
    group_size: Count = 1  # workers that share every gradient by all-reduce

    @model_validator(mode="after")
    def _compresses_displacements(self) -> Self:
        if self.compression is not None and self.compression.kind == "powersgd":
            raise ValueError(
                'compression.kind = "powersgd": is made for gradients in their matrices, and displacements are flat; choose "int8", "int4" '
                'or "sparse_loco"'
            )
        return self


class DiLoCoSection(OuterSection):
    """Workers take `period` updates of their own, and an outer optimizer steps along the mean of where they went."""

    kind: Literal["diloco"] = "diloco"
    period_warmup: Annotated[int, Field(ge=0)] = 0  # updates over which the period grows from 1
    momentum: Literal["average", "keep", "reset"] = "keep"  # what becomes of the inner optimizer's state at an exchange


class MuLoCoSection(DiLoCoSection):
    """DiLoCo with Muon inside."""

    kind: Literal["muloco"] = "muloco"  # type: ignore[assignment]
    outer_momentum: Momentum = 0.6

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse another optimizer."""
        if recipe.optimizer.groups_by != "muon":
            raise ValueError(
                f'comm.kind = "muloco" with optimizer.name = "{recipe.optimizer.name}": has Muon inside; set optimizer.name = "muon" and '
                'its rates (rule "muon"), or comm.kind = "diloco"'
            )


class StreamingDiLoCoSection(OuterSection):
    """DiLoCo in fragments, which are exchanged while workers go on."""

    kind: Literal["streaming_diloco"] = "streaming_diloco"
    fragments: Count = 2  # parts of the model, each exchanged once a period
    overlap: Annotated[int, Field(ge=0)] = 1  # updates from the start of an exchange to its outer step
    mix: Fraction = 0.5  # part of a worker's own weights that stays then


class NoLoCoSection(CommSection):
    """Workers take `period` updates of their own, then a momentum step with one random other worker."""

    kind: Literal["noloco"] = "noloco"
    local_steps: ClassVar[bool] = True
    applies_to_one_worker: ClassVar[bool] = True

    period: Count = 50  # inner updates between two exchanges
    outer_lr: Positive = 0.7
    outer_momentum: Momentum = 0.5
    pull: Positive | None = None  # towards the partner's weights; outer_lr if left out
    tolerant: bool = False  # go on without a partner that is lost


def _settings(c: OuterSection, ranks: "Ranks", recipe: Recipe) -> dict[str, Any]:
    small = c.compression
    compressor = None if small is None or ranks.world_size == 1 else COMPRESSIONS[small.kind].build(small, recipe.seed, ranks.device)
    return {**c.model_dump(exclude={"kind", "label_skew", "compression"}), "compressor": compressor}


@COMMS.register("diloco", DiLoCoSection)
def build(c: DiLoCoSection, model: "nn.Module", ranks: "Ranks", recipe: Recipe) -> "DiLoCo":
    """How the recipe's workers go together."""
    from bigbatch.comm.local.diloco import DiLoCo

    return DiLoCo(model, ranks, **_settings(c, ranks, recipe))


@COMMS.register("muloco", MuLoCoSection)
def build_muloco(c: MuLoCoSection, model: "nn.Module", ranks: "Ranks", recipe: Recipe) -> "MuLoCo":
    """How the recipe's workers go together."""
    from bigbatch.comm.local.muloco import MuLoCo

    return MuLoCo(model, ranks, **_settings(c, ranks, recipe))


@COMMS.register("streaming_diloco", StreamingDiLoCoSection)
def build_streaming(c: StreamingDiLoCoSection, model: "nn.Module", ranks: "Ranks", recipe: Recipe) -> "StreamingDiLoCo":
    """How the recipe's workers go together."""
    from bigbatch.comm.local.streaming_diloco import StreamingDiLoCo

    return StreamingDiLoCo(model, ranks, **_settings(c, ranks, recipe))


@COMMS.register("noloco", NoLoCoSection)
def build_noloco(c: NoLoCoSection, model: "nn.Module", ranks: "Ranks", _: Any) -> "NoLoCo":
    """How the recipe's workers go together."""
    from bigbatch.comm.local.noloco import NoLoCo

    return NoLoCo(model, ranks, **c.model_dump(exclude={"kind", "label_skew"}))
