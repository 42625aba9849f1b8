"""The trade-off between updates and samples to a target, as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigbatch.core.metric import metric_of
from bigbatch.noise.estimate import two_digits
from bigbatch.report.blocks import Block, Section, caveats, plots, table, verdict
from bigbatch.report.plots import COLOURS, INK, SVG_STYLE, bound, drawn, log_scale, nothing, to_svg, write_plot
from bigbatch.study.critical.study import stored_rows

FILE = "critical.svg"


def write_trade_off(study: Mapping[str, Any], folder: Path) -> Path:
    """Write the plot of a stored study (`critical.json`) into its folder.

    Returns:
        Path of the SVG file.

    Raises:
        OutputError: If it can't be written.
    """
    return write_plot(draw_trade_off(study), folder / FILE)


def draw_trade_off(study: Mapping[str, Any]) -> str:
    """Updates against samples to the target, both logarithmic: a point a run, the fit with its band, the noise scale's prediction.

    Along a straight line to the upper right the batch is the same; arrows mark runs that were stopped before the target.

    Args:
        study: As `CriticalStudy.to_dict` gives it; a study without a fit has its points only.

    Returns:
        An `<svg>` element.
    """
    metric = metric_of(study["metric"])
    title = f"{study['task']}: to {metric} {metric.exact(study['target'])} on validation data"
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        _draw_fit(axes, study)
        if study["noise"] is not None:
            batches = [each["global_batch"] for each in study["curve"]]
            scale, least = study["noise"]["noise_scale"], study["noise"]["min_steps"]
            steps = [least * (1 + scale / batch) for batch in batches]
            label = f"noise scale {two_digits(scale)} as critical batch"
            axes.plot(_samples(batches, steps), steps, color=COLOURS[1], lw=1.4, ls="--", label=label)
        _draw_points(axes, study["points"])
        _frame(axes)
        axes.set_xlabel("samples to the target (log)")
        axes.set_ylabel("updates to the target (log)")
        return to_svg(figure, title)


def _draw_fit(axes: Axes, study: Mapping[str, Any]) -> None:
    if study["fit"] is None:
        return
    curve, critical = study["curve"], study["fit"]["critical_batch"]["value"]
    batches = [each["global_batch"] for each in curve]
    steps = [each["value"] for each in curve]
    name = f"fit, critical batch {two_digits(critical)}" if critical else "fit"
    axes.plot(_samples(batches, steps), steps, color=COLOURS[0], lw=1.6, label=name)
    known = [each for each in curve if each["lower"] and each["upper"]]  # no band where it has no end
    lower, upper = [each["lower"] for each in known], [each["upper"] for each in known]
    within = [each["global_batch"] for each in known]
    xs = _samples(within, lower) + _samples(within, upper)[::-1]
    axes.fill(
        xs, lower + upper[::-1], color=COLOURS[0], alpha=0.15, lw=0, label=f"{100 * study['fit']['confidence']:g} % band of the curve"
    )


def _draw_points(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """A full point a run that reached the target, and a hollow one with an arrow along its batch for one that needs more."""
    named: set[str] = set()
    for point in points:
        batch = point["global_batch"]
        for run in point["runs"]:
            if run["diverged"]:
                continue
            label = "run" if run["reached"] else "at least: stopped before the target"
            told = None if label in named else label
            x, y = batch * run["updates"], run["updates"]
            if run["reached"]:
                axes.plot([x], [y], ls="", ms=4, marker="o", color=INK, label=told)
            else:
                bound(axes, x, y, color=COLOURS[2], label=told)
            named.add(label)
        ends = [run["updates"] for run in point["runs"] if not run["diverged"]]
        if ends:
            at = batch * max(ends), max(ends)
            axes.annotate(f"{batch:,}", at, xytext=(6, -9), textcoords="offset points", fontsize=8)
    if not axes.lines:
        nothing(axes, "no run came to its end")


def _frame(axes: Axes) -> None:
    """Frame what was measured and fitted; a band that has hardly a bound is cut off."""
    if log_scale(axes, "x") and log_scale(axes, "y"):
        xs, ys = drawn(axes, "x"), drawn(axes, "y")
        axes.set_xlim(0.6 * xs[xs > 0].min(), 1.8 * xs.max())
        axes.set_ylim(0.6 * ys[ys > 0].min(), 1.8 * ys.max())


def _samples(batches: Sequence[float], steps: Sequence[float]) -> list[float]:
    return [batch * count for batch, count in zip(batches, steps, strict=True)]


def critical_section(study: Mapping[str, Any]) -> Section:
    """Of a stored study, as `CriticalStudy.to_dict` gives it."""
    metric = metric_of(study["metric"])
    columns = ["batch", "best rate", "updates", "samples", "S/S_min", "E/E_min", "note"]
    compared = study["noise"]["words"] if study["noise"] else None
    blocks: list[Block] = [
        verdict(study["sentence"]),
        *([verdict(compared)] if compared else []),
        plots([draw_trade_off(study)]),
        table(columns, stored_rows(study), numbers=columns[:-1]),
        *caveats(study["doubts"]),
    ]
    title = f"{study['task']}: critical batch to validation {metric} {metric.exact(study['target'])}"
    return Section(title, tuple(blocks), "From which batch on do larger batches pay less than they cost?")
