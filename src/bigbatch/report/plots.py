"""Line plots as SVG text, from the records of runs."""

import html
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter

from bigbatch.core.metric import ACCURACY, Metric
from bigbatch.core.storage.writing import write_atomically

INK = "#1d2430"
"""Lines and points that belong to no arm."""
COLOURS = ("#3b6ea5", "#c8553d", "#2f8f5b")  # told apart by most colour-blind readers
DARK = {
    "#ffffff": "#14181f",
    "#000000": "#d9dee6",
    INK: "#d9dee6",
    "#595959": "#b8bec8",
    "#666666": "#aab1bc",
    "#3b6ea5": "#7fb2e5",
    "#c8553d": "#f08a70",
    "#2f8f5b": "#63c290",
    "#7d5ba6": "#b79be0",
}
"""What each colour of a plot becomes where the reader prefers dark pages."""
PLOT = "bigbatch-plot"
MOST_POINTS = 250
LABEL, LINE = 48, 130
"""Most characters of the label of an axis or a line, and of any other text."""
SVG_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "bigbatch", "font.family": "sans-serif", "text.parse_math": False}
"""For `matplotlib.rc_context`: text stays text, no title is read as mathematics, and equal plots are equal files."""
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
    widths = (2.2, 1.6, 1.1)  # so that equal curves can be told apart where they lie on each other
    for colour, width, (name, records) in zip(COLOURS, widths, arms.items(), strict=False):
        for i, record in enumerate(records):
            xs, ys = points(record, against)
            marker = "." if dots or (len(xs) < 30 and points is not global_batch) else ""
            axes.plot(xs, ys, color=colour, lw=width, alpha=0.75, marker=marker, ms=4, label=shown(name) if i == 0 else None)
            starts += ys[:1]
    axes.set_ylabel(ylabel)
    if points is training_loss:
        _scale_losses(axes, LOSS_CEILING * max(starts, default=1.0))  # so that a diverged run does not flatten the others
    if against == "update":
        axes.set_xlabel("updates (log)" if log_scale(axes, "x") else "updates")
    else:
        count_axis(axes)
        axes.set_xlabel("samples")
    return to_svg(figure, title)


def draw_together(record: Record, metric: Metric, *, title: str) -> str:
    """Training loss and validation score of one run side by side, by samples."""
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(*training_loss(record, "samples"), color=COLOURS[0], lw=1.4)
        log_scale(left, "y")
        right.plot(*validation_score(record, "samples", metric), color=COLOURS[0], lw=1.4, marker=".")
        for axes, label in ((left, "training loss"), (right, f"validation {metric.label}")):
            count_axis(axes)
            axes.set_xlabel("samples")
            axes.set_ylabel(label)
        return to_svg(figure, title)


def _scale_losses(axes: Axes, top: float) -> None:
    """A logarithmic axis up to `top`; a linear one where a loss is zero, or below."""
    if not log_scale(axes, "y"):
        return
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    values = drawn(axes, "y")
    axes.set_ylim(0.8 * float(values.min()), max(min(axes.get_ylim()[1], top), 1.2 * float(values.min())))


def shown(text: str) -> str:
    r"""A name from outside, as a plot can hold it: without control characters, and in the legend even where it begins with "_".

    >>> shown("_run\0")
    '\u200b_run\ufffd'
    """
    clean = "".join(c if c.isprintable() or c in "\n\u200b" else "\ufffd" for c in text)
    return f"\u200b{clean}" if clean.startswith("_") else clean


def drawn(axes: Axes, which: Literal["x", "y"]) -> "np.ndarray[Any, Any]":
    """All finite values of the lines on an axis; no horizontal or vertical line through the whole plot."""
    lines = [line for line in axes.lines if line.get_transform() == axes.transData]
    values = [np.asarray(line.get_xdata() if which == "x" else line.get_ydata(), dtype=float) for line in lines]
    joined = np.concatenate([*values, np.empty(0)])
    finite: np.ndarray[Any, Any] = joined[np.isfinite(joined)]
    return finite


def log_scale(axes: Axes, which: Literal["x", "y"]) -> bool:
    """Make an axis logarithmic where all that is drawn is above zero; else leave it linear, and say so.

    A point at zero, such as an evaluation before the first update, keeps the axis linear only if nothing else is there.
    """
    values = drawn(axes, which)
    if not (values > 0).any() or (which == "y" and (values <= 0).any()):
        return False
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log", nonpositive="mask")
    log_ticks(axis)
    least, most = float(values[values > 0].min()), float(values.max())
    if least == most:  # one point: a decade about it
        (axes.set_xlim if which == "x" else axes.set_ylim)(least / 3, most * 3)
    return True


def count_axis(axes: Axes) -> None:
    """A linear horizontal axis of counts: from zero on, marked at whole numbers."""
    values = drawn(axes, "x")
    most = float(values.max()) if len(values) else 0.0
    axes.set_xlim(0, 1.05 * most if most > 0 else 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def nothing(axes: Axes, words: str) -> None:
    """Say in the middle of a plot why it has no points, in place of an axis about zero."""
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, fontsize=9, wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])


def bound(axes: Axes, x: float, y: float, *, color: str, up: bool = True, label: str | None = None) -> None:
    """A value of which only one side is known: a hollow point, and an arrow to where the value lies."""
    axes.plot([x], [y], ls="", marker="o", ms=5, mfc="white", mec=color, mew=1.3, label=label)
    arrow = {"arrowstyle": "<-", "color": color, "lw": 1.2, "shrinkA": 0, "shrinkB": 3}
    axes.annotate("", (x, y), xytext=(0, 20 if up else -20), textcoords="offset points", arrowprops=arrow)


def log_ticks(axis: Axis) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each power, as 500, 1k, 2M."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure, title: str) -> str:
    """The figure, of one plot or several side by side, in the style of all plots: an `<svg>` element with an accessible name.

    Text is drawn as it is, whatever it holds. Colours follow the reader's preference for dark pages.
    """
    first, *others = figure.axes
    title = shown(title)
    if others:
        figure.suptitle(title, fontsize=10)
    else:
        first.set_title(title, fontsize=10)
    for axes in figure.axes:
        if not (axes.lines or axes.collections or axes.patches or axes.texts):
            nothing(axes, "no values yet")
        for scaled in (axes, *axes.child_axes):
            for axis in (scaled.xaxis, scaled.yaxis):
                if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    axis.set_minor_formatter(NullFormatter())
        for inside in axes.texts:
            inside.set_in_layout(False)  # however long, it takes no room from the axes
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    labels: list[Text] = [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    labels += [text for axes in figure.axes if (legend := axes.get_legend()) is not None for text in legend.get_texts()]
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(_cut(shown(text.get_text()), LABEL if text in labels else LINE))
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the reader's fonts draw the text, not ours
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    named = f'<svg role="img" aria-label="{html.escape(title)}" class="{PLOT}" '
    return svg.replace("<svg ", named, 1).replace(">", f">\n<style>{_DARK_STYLE}</style>", 1)


def _cut(text: str, longest: int) -> str:
    """Lines of at most so many characters: a longer one would leave no room for the axes."""
    return "\n".join(line if len(line) <= longest else f"{line[: longest - 1]}\u2026" for line in text.split("\n"))


def _dark_style() -> str:
    rules = [f"svg.{PLOT} text {{ fill: {DARK['#000000']} }}"]
    for light, dark in DARK.items():
        rules += [f'svg.{PLOT} [style*="{what}: {light}"] {{ {what}: {dark} !important }}' for what in ("fill", "stroke")]
    return f"@media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}"


_DARK_STYLE = _dark_style()
