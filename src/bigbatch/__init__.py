"""bigbatch scales a PyTorch training run to large batches and many workers without losing accuracy.

    recipe = bigbatch.Recipe.named("fashion_mnist/mlp")                   # tuned at a batch of 128
    plan = bigbatch.plan(recipe, global_batch=1024, rule="linear")        # what must change, and why
    result = bigbatch.fit("fashion_mnist/mlp", plan.recipe)               # run it; or in a loop of your own:
    optimizer = bigbatch.build_optimizer(model, plan.recipe)
    scheduler = bigbatch.build_scheduler(optimizer, plan.recipe)

Names below are imported on first use: `import bigbatch` costs neither torch nor pydantic.
"""

import importlib

from bigbatch.core.version import __version__ as __version__

TYPE_CHECKING = False  # typing takes milliseconds, in which Ctrl-C would show a traceback
if TYPE_CHECKING:
    from typing import Any

    from bigbatch.core.checks import Diverged, Interrupted, UserError
    from bigbatch.core.clock import Clock
    from bigbatch.core.metric import Metric
    from bigbatch.optim.from_recipe import build_optimizer
    from bigbatch.recipe import Recipe
    from bigbatch.scaling import Plan, plan
    from bigbatch.schedules.scheduler_from_recipe import build_scheduler
    from bigbatch.study.comparison.comparison import Comparison
    from bigbatch.study.comparison.scale import scale
    from bigbatch.train import Result, fit

_HOMES = {
    "Clock": "bigbatch.core.clock",
    "Comparison": "bigbatch.study.comparison.comparison",
    "Diverged": "bigbatch.core.checks",
    "Interrupted": "bigbatch.core.checks",
    "Metric": "bigbatch.core.metric",
    "Plan": "bigbatch.scaling",
    "Recipe": "bigbatch.recipe",
    "Result": "bigbatch.train",
    "UserError": "bigbatch.core.checks",
    "build_optimizer": "bigbatch.optim.from_recipe",
    "build_scheduler": "bigbatch.schedules.scheduler_from_recipe",
    "fit": "bigbatch.train",
    "plan": "bigbatch.scaling",
    "scale": "bigbatch.study.comparison.scale",
}
__all__ = [
    "Clock",
    "Comparison",
    "Diverged",
    "Interrupted",
    "Metric",
    "Plan",
    "Recipe",
    "Result",
    "UserError",
    "build_optimizer",
    "build_scheduler",
    "fit",
    "plan",
    "scale",
]


def __getattr__(name: str) -> "Any":
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bigbatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
