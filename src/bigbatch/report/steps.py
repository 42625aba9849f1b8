"""Updates to a target over all batches, and how the best settings move, as a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bigbatch.core.metric import metric_of
from bigbatch.report.blocks import Block, Section, caveats, plots, table, verdict
from bigbatch.report.plots import COLOURS, SVG_STYLE, bound, log_scale, nothing, to_svg, write_plot
from bigbatch.study.steps.study import COLUMNS, stored_rows

FILE = "steps.svg"
LR, MOMENTUM = "optimizer.lr", "optimizer.momentum"
NUMBER = FuncFormatter(lambda value, _: f"{value:,g}")


def write_steps(study: Mapping[str, Any], folder: Path) -> Path:
    """Write the plot of a stored study (`steps.json`) into its folder.

    Returns:
        Path of the SVG file.

    Raises:
        OutputError: If it can't be written.
    """
    return write_plot(draw_steps({study["recipe"]["optimizer"]["name"]: study}), folder / FILE)


def draw_steps(studies: Mapping[str, Mapping[str, Any]], title: str | None = None, *, which: str = "both") -> str:
    """Updates against the batch, and the best rates against the batch, all logarithmic, of one study or several.

    Bars are intervals; a point without an upper bound has an arrow, as one that did not reach the target, at its longest run. Thin lines
    are where regimes meet, dotted ones twice the batch for half the updates.

    Args:
        studies: As `StepsStudy.to_dict` gives them, by the name of each in the legend.
        title: Of the plot; the task and target of the first study if left out.
        which: "updates", "rates", or "both" side by side.

    Returns:
        An `<svg>` element.
    """
    first = next(iter(studies.values()))
    metric = metric_of(first["metric"])
    shown = ["updates", "rates"] if which == "both" else [which]
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(4.6 * len(shown), 4.2), layout="constrained")
        for name, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
            for (legend, study), colour in zip(studies.items(), COLOURS, strict=False):
                (_draw_updates if name == "updates" else _draw_rates)(axes, study, legend, colour)
            if name == "rates":
                _guides(axes, first)
            axes.set_ylabel("updates to the target (log)" if name == "updates" else "best rate (log); dashed: lr/(1 - momentum)")
            axes.set_xlabel("batch, samples (log)")
            if not axes.lines:
                nothing(axes, "no batch reached the target")
            elif log_scale(axes, "y"):
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter(NUMBER)
            if name == "rates":
                axes.yaxis.set_major_formatter(NUMBER)
        return to_svg(figure, title or f"{first['task']}: to {metric} {metric.exact(first['target'])} on validation data")


def _draw_updates(axes: Axes, study: Mapping[str, Any], name: str, colour: str) -> None:
    points = [point for point in study["points"] if point["updates"] is not None]
    batches = [point["global_batch"] for point in points]
    values = [point["updates"]["value"] for point in points]
    axes.plot(batches, values, marker="o", ms=4, lw=1.2, color=colour, label=name)
    for batch, point in zip(batches, points, strict=True):
        lower, upper = point["updates"]["lower"], point["updates"]["upper"]
        if upper is None:
            bound(axes, batch, lower, color=colour)
        else:
            axes.plot([batch, batch], [lower, upper], color=colour, lw=3, alpha=0.35)
    for point in study["points"]:
        if point["updates"] is None:
            bound(axes, point["global_batch"], point["longest"], color=colour)
    if points:
        ideal = [values[0] * batches[0] / batch for batch in batches]
        axes.plot(batches, ideal, color=colour, lw=0.8, ls=":")
    if (regimes := study["regimes"]) is not None:
        for knee in ("perfect_until", "maximal_from"):
            axes.axvline(regimes[knee]["value"], color=colour, lw=0.6, alpha=0.5)


def _draw_rates(axes: Axes, study: Mapping[str, Any], name: str, colour: str) -> None:
    best = {point["global_batch"]: point["best"]["values"] for point in study["points"] if point["best"] is not None}
    if not best or LR not in next(iter(best.values())):
        return
    axes.plot(list(best), [values[LR] for values in best.values()], marker="o", ms=4, lw=1.2, color=colour, label=name)
    if all(MOMENTUM in values for values in best.values()):
        axes.plot(
            list(best), [values[LR] / (1 - values[MOMENTUM]) for values in best.values()], marker="s", ms=3, lw=1, ls="--", color=colour
        )


def _guides(axes: Axes, study: Mapping[str, Any]) -> None:
    """Lines of the root rule and of linear scaling, through the first best rate."""
    best = [(point["global_batch"], point["best"]["values"].get(LR)) for point in study["points"] if point["best"] is not None]
    if len(best) < 2 or best[0][1] is None:
        return
    (start, rate), end = best[0], best[-1][0]
    for power, style, label in ((0.5, "-.", "root rule"), (1.0, ":", "linear")):
        axes.plot([start, end], [rate, rate * (end / start) ** power], color="grey", lw=0.9, ls=style, label=label)


def steps_section(study: Mapping[str, Any]) -> Section:
    """Of a stored study, as `StepsStudy.to_dict` gives it."""
    metric, (first, *others) = metric_of(study["metric"]), study["sentences"]
    named = {study["recipe"]["optimizer"]["name"]: study}
    blocks: list[Block] = [
        verdict(first),
        *(verdict(text) for text in others),
        plots([draw_steps(named, which=which) for which in ("updates", "rates")]),
        table(COLUMNS, stored_rows(study), numbers=("batch", "updates", "samples"), stacked=True),
        *caveats(study["doubts"]),
    ]
    title = f"{study['task']}: updates to validation {metric} {metric.exact(study['target'])}, all settings searched"
    return Section(title, tuple(blocks), "How do updates to a target fall with the batch?")
