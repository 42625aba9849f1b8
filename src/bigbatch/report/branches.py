"""The critical batch over training, as a plot: by branches from checkpoints of one run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigbatch.report.blocks import Block, Section, caveats, plots, table, verdict
from bigbatch.report.plots import COLOURS, SVG_STYLE, bound, count_axis, log_scale, nothing, to_svg, write_plot

FILE = "branches.svg"


def write_branches(study: Mapping[str, Any], folder: Path) -> Path:
    """Write the plot of a stored study (`branches.json`) into its folder.

    Returns:
        Path of the SVG file.

    Raises:
        OutputError: If it can't be written.
    """
    return write_plot(draw_branches(study), folder / FILE)


def draw_branches(study: Mapping[str, Any]) -> str:
    """What branches gain by their batch at each checkpoint, and the critical batch with its interval over the run.

    Args:
        study: As `BranchStudy.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_gains(left, study)
        _draw_critical(right, study)
        return to_svg(figure, f"{study['task']}: branches of {study['samples']:,} samples")


def _draw_gains(axes: Axes, study: Mapping[str, Any]) -> None:
    for number, point in enumerate(study["points"]):
        colour = COLOURS[number % len(COLOURS)]
        full = point["branches"][1:]
        for each in full:
            gains = [point["start_loss"] - loss for loss in each["losses"] if loss is not None]
            axes.plot([each["global_batch"]] * len(gains), gains, ls="", marker="o", ms=3, color=colour)
        critical, power = point["critical_batch"]["value"], point["power"]
        batches = [full[0]["global_batch"] * (full[-1]["global_batch"] / full[0]["global_batch"]) ** (i / 40) for i in range(41)]
        if critical:
            curve = [point["gain"] / (1 + batch / critical) ** power for batch in batches]
            axes.plot(batches, curve, color=colour, lw=1.4, label=f"update {point['updates']:,}")
    log_scale(axes, "x")
    gains = [point["gain"] for point in study["points"] if point["gain"] is not None]
    axes.set_ylim(bottom=min([0.0, *gains]) - 0.02 * max([*map(abs, gains), 1e-12]))
    axes.set_xlabel("batch, samples (log)")
    axes.set_ylabel("fall of the held-out loss")


def _draw_critical(axes: Axes, study: Mapping[str, Any]) -> None:
    """A full point with an interval where both ends are known; a hollow one with an arrow where only one is; none where nothing is."""
    values: list[float] = []
    for point in study["points"]:
        value, lower, upper = (point["critical_batch"][name] for name in ("value", "lower", "upper"))
        at, nobody_knows = point["samples"], lower == 0 and upper is None
        if not value or nobody_knows:
            continue
        if lower is None:  # one window of data: no interval
            axes.plot([at], [value], ls="", color=COLOURS[0], marker="o", ms=4)
            values.append(value)
        elif upper is None or lower == 0:
            values.append(lower or upper)
            bound(axes, at, values[-1], color=COLOURS[0], up=upper is None)
        else:
            axes.errorbar([at], [value], yerr=[[value - lower], [upper - value]], color=COLOURS[0], marker="o", ms=4, capsize=3, lw=1.2)
            values += [lower, value, upper]
    axes.set_xlabel("samples of the run")
    axes.set_ylabel(f"critical batch, samples (log), {100 * study['confidence']:g} %")
    if not values:
        nothing(axes, "no critical batch was found")
        return
    log_scale(axes, "y")
    axes.set_ylim(min(values) / 4, max(values) * 4)
    count_axis(axes)


def branches_section(study: Mapping[str, Any]) -> Section:
    """Of a stored study, as `BranchStudy.to_dict` gives it."""
    columns = ["update", "batch", "rate times", "fall of the held-out loss"]
    rows = [
        [f"{point['updates']:,}", f"{way['global_batch']:,.0f}", f"{way['rate_factor']:.3g}", _gain(point["start_loss"], way["losses"])]
        for point in study["points"]
        for way in point["branches"][1:]
    ]
    blocks: list[Block] = [
        *map(verdict, study["sentences"]),
        plots([draw_branches(study)]),
        table(columns, rows, numbers=columns),
        *caveats(study["notes"]),
    ]
    title = f"{study['task']}: critical batch by branches of {study['samples']:,} samples"
    return Section(title, tuple(blocks), "How large may the batch be, from which point of the run on?")


def _gain(start: float, losses: list[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{start - sum(known) / len(known):.4f}" if known and len(known) == len(losses) else "diverged"
