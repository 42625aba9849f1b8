"""Plots of plans, studies and results for notebooks; `bigbatch.core.notebook` asks for them."""

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bigbatch.core.checks import UserError
from bigbatch.core.clock import Clock
from bigbatch.report.branches import draw_branches
from bigbatch.report.noise import draw_noise
from bigbatch.report.plots import COLOURS, INK, SVG_STYLE, count_axis, draw_together, shown, to_svg
from bigbatch.report.simulate import draw_simulation
from bigbatch.report.trade_off import draw_trade_off

CURVE_POINTS = 200
OF_STORED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "NoiseStudy": draw_noise,
    "CriticalStudy": draw_trade_off,
    "BranchStudy": draw_branches,
    "Simulation": draw_simulation,
}
"""By the class's name: what draws its `to_dict`."""


def draw(value: Any, **more: Any) -> str:
    """An `<svg>` element.

    Raises:
        UserError: If there is nothing to draw of a value.
    """
    name = type(value).__name__
    if name in OF_STORED:
        return OF_STORED[name](value.to_dict())
    own: dict[str, Callable[..., str]] = {"Recipe": draw_recipe, "Plan": draw_plan, "Comparison": draw_comparison, "Result": draw_result}
    if name not in own:
        raise UserError(f"{name}: has no plot; `bigbatch report` draws what is in its folder")
    return own[name](value, **more)


def draw_recipe(recipe: Any) -> str:
    """The learning rate over the samples of the run."""
    return _draw_rates({"rate": recipe}, f"{recipe.task or 'recipe'}: learning rate at {recipe.batch.global_batch:,}")


def draw_plan(plan: Any) -> str:
    """The learning rates of both recipes over the samples of the run."""
    small, large = plan.reference, plan.recipe
    recipes = {f"reference ({small.batch.global_batch:,})": small, f"{plan.rule} ({large.batch.global_batch:,})": large}
    return _draw_rates(recipes, f"{small.task or 'recipe'}: learning rates, rule {plan.rule}")


def _draw_rates(recipes: Mapping[str, Any], title: str) -> str:
    from bigbatch.schedules.from_recipe import schedule_of

    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for colour, (name, recipe) in zip(COLOURS, recipes.items(), strict=False):
            if recipe.schedule.warmup.learns:
                raise UserError(f"{name}: its warm-up finds the rate while it trains; the report of the run draws it")
            factor, total = schedule_of(recipe), recipe.total_samples
            samples = [total * i // CURVE_POINTS for i in range(CURVE_POINTS)]
            rates = [recipe.optimizer.lr * factor(Clock(at, at // recipe.batch.global_batch)) for at in samples]
            axes.plot(samples, rates, color=colour, lw=1.6, label=shown(name))
        count_axis(axes)
        axes.set_xlabel("samples")
        axes.set_ylabel("learning rate")
        return to_svg(figure, title)


def draw_comparison(comparison: Any) -> str:
    """Test scores of all runs by arm, their means, and what the margin lets be lost."""
    metric = comparison.metric
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for number, arm in enumerate(comparison.arms):
            scores = [score for score in arm.scores if math.isfinite(score)]
            axes.plot([number] * len(scores), scores, ls="", marker="o", ms=4, alpha=0.6, color=COLOURS[number])
            if scores:
                mean = statistics.fmean(scores)
                axes.plot([number - 0.25, number + 0.25], [mean, mean], color=COLOURS[number], lw=2)
                if number == 0 and not metric.relative:
                    allowed = mean + metric.difference(-comparison.design.margin)
                    axes.plot([-0.4, 2.4], [allowed, allowed], color=INK, lw=1, ls=":", label="the margin")
        axes.set_xticks(range(3), [shown(f"{arm.name}\n{arm.recipe.batch.global_batch:,}") for arm in comparison.arms])
        axes.set_xlim(-0.5, 2.5)
        axes.set_ylabel(f"test {metric.label}")
        return to_svg(figure, f"{comparison.task}: {len(comparison.arms[0].results)} seeds")


def draw_result(result: Any, folder: str | Path | None = None) -> str:
    """Training loss and validation score over the samples of the run in a folder."""
    from bigbatch.core.metric import metric_of
    from bigbatch.report.plots import start_of
    from bigbatch.train.state.record_lines import read_record

    if folder is None:
        raise UserError(f"the result of {result.task}: is without its curves; give the folder of the run: result.plot(out)")
    record = read_record(Path(folder) / "record.jsonl")
    if not record:
        raise UserError(f"{folder}: holds no record of a run; give the `out` that the run was given")
    metric = metric_of((start_of(record) or {}).get("metric") or "score")
    return draw_together(record, metric, title=result.task)
