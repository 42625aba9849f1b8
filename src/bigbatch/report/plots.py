"""Line plots as SVG text, from the records of runs."""

import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from bigbatch.core.files import write_atomically
from bigbatch.core.metric import ACCURACY, Metric

COLOURS = ("#3b6ea5", "#c8553d", "#2f8f5b")  # told apart by most colour-blind readers
MOST_POINTS = 250
SVG_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "bigbatch", "font.family": "sans-serif"}
"""For `matplotlib.rc_context`: text stays text, and equal plots are equal files."""
LOSS_CEILING = 3.0  # times the highest first loss
Record = Sequence[Mapping[str, Any]]
Points = tuple[list[float], list[float]]


def write_plot(svg: str, path: Path) -> Path:
    """Write a plot as a file; returns its path.

    Raises:
        OutputError: If it can't be written.
    """
    write_atomically(path, svg.encode())
    return path


def start_of(record: Record) -> Mapping[str, Any] | None:
    """The line with the recipe and the environment; None where it is lost."""
    return next((line for line in record if line["kind"] == "start"), None)


def training_loss(record: Record, against: str) -> Points:
    """Mean training loss of at most `MOST_POINTS` stretches of the run, against "samples" or "update"."""
    updates = [line for line in record if line["kind"] in ("update", "reported") and line["loss"] is not None]
    xs, ys = [float(u[against]) for u in updates], [float(u["loss"]) for u in updates]
    if len(xs) <= MOST_POINTS:
        return xs, ys
    pieces = np.array_split(np.arange(len(xs)), MOST_POINTS)
    return [xs[p[-1]] for p in pieces], [float(np.mean([ys[i] for i in p])) for p in pieces]


def validation_score(record: Record, against: str, metric: Metric = ACCURACY) -> Points:
    """Validation score in the metric's unit against "samples" or "update"."""
    lines = [line for line in record if line["kind"] == "evaluation" and line["split"] == "validation"]
    return [float(e[against]) for e in lines], [metric.shown(float(e["score"])) for e in lines]


def learning_rate(record: Record, against: str) -> Points:
    """Learning rate against "samples" or "update"."""
    updates = [line for line in record if line["kind"] == "update"]
    updates = updates[:: max(1, len(updates) // MOST_POINTS)] + updates[-1:]
    return [float(u[against]) for u in updates], [float(u["lr"]) for u in updates]


def batch_size_changes(record: Record) -> bool:
    """Whether a rule set the batch anew."""
    return any(line["kind"] == "batch" and line["before"] != line["after"] for line in record)


def global_batch(record: Record, against: str) -> Points:
    """Samples of an update against "samples" or "update", at every change."""
    updates = [line for line in record if line["kind"] == "update"]
    turns = [i for i, u in enumerate(updates) if i in (0, len(updates) - 1) or u["global_batch"] != updates[i - 1]["global_batch"]]
    kept = sorted({i for turn in turns for i in (turn - 1, turn) if i >= 0})
    return [float(updates[i][against]) for i in kept], [float(updates[i]["global_batch"]) for i in kept]


def draw(
    arms: Mapping[str, Sequence[Record]],
    points: Callable[[Record, str], Points],
    *,
    against: str,
    ylabel: str,
    title: str,
    dots: bool = False,
) -> str:
    """One plot: a thin line per run, a colour per arm.

    Args:
        arms: Name of an arm to the records of its runs.
        points: One of the functions above.
        against: "samples" or "update".
        ylabel: Label of the vertical axis.
        title: Title of the plot, also its accessible name.
        dots: Whether each point is marked, however many there are.

    Returns:
        An `<svg>` element.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    starts: list[float] = []
    values: list[float] = []
    widths = (2.2, 1.6, 1.1)  # so that equal curves can be told apart where they lie on each other
    for colour, width, (name, records) in zip(COLOURS, widths, arms.items(), strict=False):
        for i, record in enumerate(records):
            xs, ys = points(record, against)
            marker = "." if dots or (len(xs) < 30 and points is not global_batch) else ""
            axes.plot(xs, ys, color=colour, lw=width, alpha=0.75, marker=marker, ms=4, label=name if i == 0 else None)
            starts += ys[:1]
            values += ys
    if points is training_loss:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        top = LOSS_CEILING * max(starts, default=1.0)  # so that a diverged run does not flatten the others
        axes.set_ylim(0.8 * min(values, default=1.0), min(axes.get_ylim()[1], top))
    if against == "update":
        axes.set_xscale("log")
        log_ticks(axes.xaxis)
        axes.set_xlabel("updates (log)")
    else:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("samples")
    axes.set_ylabel(ylabel)
    return to_svg(figure, title)


def log_ticks(axis: Axis) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each power, as 500, 1k, 2M."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, title: str) -> str:
    """The figure, of one plot or several side by side, in the style of all plots: an `<svg>` element with an accessible name."""
    first, *others = figure.axes
    if others:
        figure.suptitle(title, fontsize=10)
    else:
        first.set_title(title, fontsize=10)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
