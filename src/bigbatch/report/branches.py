"""The critical batch over training, as a plot: by branches from checkpoints of one run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bigbatch.report.plots import COLOURS, SVG_STYLE, log_ticks, to_svg, write_plot

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
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    lowest = min((each for point in study["points"] for each in [0.0, point["gain"]]), default=0.0)
    axes.set_ylim(bottom=min(lowest, 0.0) - 0.02 * max((point["gain"] for point in study["points"]), default=1.0))
    axes.set_xlabel("batch, samples (log)")
    axes.set_ylabel("fall of the held-out loss")


def _draw_critical(axes: Axes, study: Mapping[str, Any]) -> None:
    known = [point for point in study["points"] if point["critical_batch"]["value"]]
    axes.set_yscale("log")
    for point in known:
        critical = point["critical_batch"]
        value, lower, upper = critical["value"], critical["lower"] or 0.0, critical["upper"]
        below = value - (lower if lower > 0 else value / 64)
        above = (upper if upper is not None and math.isfinite(upper) else 64 * value) - value
        axes.errorbar([point["samples"]], [value], yerr=[[below], [above]], color=COLOURS[0], marker="o", ms=4, capsize=3, lw=1.2)
    if known:
        values = [point["critical_batch"]["value"] for point in known]
        axes.set_ylim(min(values) / 16, max(values) * 16)
        axes.set_xlim(left=0)
    log_ticks(axes.yaxis)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("samples of the run")
    axes.set_ylabel(f"critical batch, samples (log), {100 * study['confidence']:g} %")
