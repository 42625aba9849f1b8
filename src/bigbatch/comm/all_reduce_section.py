"""All-reduce in a recipe. Nothing here imports torch before it is built: it is the default, and recipes need none."""

from typing import TYPE_CHECKING, Literal

from bigbatch.core.methods import COMMS, COMPRESSIONS
from bigbatch.recipe import Recipe
from bigbatch.recipe.base import Positive
from bigbatch.recipe.sections import AnyCompression, CommSection

if TYPE_CHECKING:
    from torch import nn

    from bigbatch.comm.all_reduce import AllReduce
    from bigbatch.comm.ranks import Ranks


class AllReduceSection(CommSection):
    """Every update is one step along the mean gradient of all workers."""

    kind: Literal["all_reduce"] = "all_reduce"
    compression: AnyCompression | None = None
    bucket_mb: Positive | None = None  # gradients that are sent together; by default a twelfth of them


@COMMS.register("all_reduce", AllReduceSection)
def build(c: AllReduceSection, model: "nn.Module", ranks: "Ranks", recipe: Recipe) -> "AllReduce":
    """How the recipe's workers go together."""
    from bigbatch.comm.all_reduce import AllReduce

    small = c.compression
    compressor = None if small is None else COMPRESSIONS[small.kind].build(small, recipe.seed, ranks.device)
    return AllReduce(model, ranks, compressor=compressor, bucket_mb=c.bucket_mb, partial=recipe.adversarial is not None)
