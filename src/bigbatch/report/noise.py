"""The noise scale over a run, as a plot."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigbatch.noise.norm_layers import NORMS
from bigbatch.noise.reader import ALL
from bigbatch.report.blocks import Block, Section, caveats, plots, table, verdict
from bigbatch.report.plots import COLOURS, SVG_STYLE, bound, count_axis, log_scale, shown, to_svg, write_plot

FILE = "noise.svg"
MOST_LAYERS = 6


def write_noise_plot(study: Mapping[str, Any], folder: Path) -> Path:
    """Write the plot of a stored measurement (`noise.json`) into its folder.

    Returns:
        Path of the SVG file.

    Raises:
        OutputError: If it can't be written.
    """
    return write_plot(draw_noise(study), folder / FILE)


def draw_noise(study: Mapping[str, Any]) -> str:
    """Noise scale against updates, a bar for each interval (open upwards where there is no bound), and the recipe's batch.

    Where tokens per sample are known, a second axis has tokens.

    Args:
        study: As `NoiseStudy.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    title = f"{study['task']}: gradient noise scale"
    with matplotlib.rc_context(SVG_STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        of = study.get("of", ALL)
        names = [name for name in study["stretches"][0]["parts"] if name != of]
        for name in names[:MOST_LAYERS]:
            xs, ys = _line(study, name)
            axes.plot(xs, ys, lw=1, alpha=0.6, label=shown(name))
        xs, ys = _line(study, of)
        label = "norm layers alone" if of == NORMS else "whole model" if names else "noise scale"
        axes.plot(xs, ys, color=COLOURS[0], lw=2, marker="o", ms=4, label=label)
        _draw_bounds(axes, study, of)
        batch = study["recipe"]["batch"]["global_batch"]
        axes.plot([study["stretches"][0]["first"], study["stretches"][-1]["last"]], [batch, batch], color="0.4", lw=1, ls=":", marker="")
        axes.lines[-1].set_label(f"the recipe's batch, {batch:,}")
        count_axis(axes)
        log_scale(axes, "y")
        axes.set_xlabel("updates")
        axes.set_ylabel("samples (log)")
        if len(names) > MOST_LAYERS:
            figure.supxlabel(f"not drawn, in the table: {len(names) - MOST_LAYERS} further layers", fontsize=7)
        if tokens := study.get("tokens_per_sample"):
            beside = axes.secondary_yaxis("right", functions=(lambda samples: samples * tokens, lambda n: n / tokens))
            beside.set_ylabel("tokens (log)")
        return to_svg(figure, title)


def _draw_bounds(axes: Axes, study: Mapping[str, Any], of: str) -> None:
    """The interval of each stretch; a hollow point with an arrow where only one end of it is known."""
    label: str | None = "at least"
    for stretch in study["stretches"]:
        whole, x = stretch["parts"][of], (stretch["first"] + stretch["last"]) / 2
        lower, upper = whole["lower"], whole["upper"]
        if lower and upper:
            axes.plot([x, x], [lower, upper], color=COLOURS[0], lw=1.2, alpha=0.6)
        elif lower:
            bound(axes, x, lower, color=COLOURS[0], label=label)
            label = None
        elif upper:
            bound(axes, x, upper, color=COLOURS[0], up=False)


def _line(study: Mapping[str, Any], part: str) -> tuple[list[float], list[float]]:
    """Middles of the stretches and their values; a gap where there is none, or a bound only."""
    parts = [stretch["parts"][part] for stretch in study["stretches"]]
    known = [e["noise_scale"] if e["lower"] is None or (e["lower"] and e["upper"]) else None for e in parts]
    return [(s["first"] + s["last"]) / 2 for s in study["stretches"]], [math.nan if v is None or v <= 0 else v for v in known]


def noise_section(study: Mapping[str, Any]) -> Section:
    """Of a stored measurement, as `NoiseStudy.to_dict` gives it."""
    tokens = ["in tokens"] if study.get("tokens_per_sample") else []
    columns = ["updates", "part", "noise scale, samples", *tokens, "signal |G|^2", "noise tr(S)", "updates used"]
    rows = [
        [
            f"{stretch['first']:,} to {stretch['last']:,}",
            part,
            each["words"],
            *[each["words_tokens"] for _ in tokens],
            _number(each["signal"]),
            _number(each["noise"]),
            f"{each['num_updates']:,}",
        ]
        for stretch in study["stretches"]
        for part, each in stretch["parts"].items()
    ]
    blocks: list[Block] = [
        verdict(study["sentence"]),
        plots([draw_noise(study)]),
        table(columns, rows, numbers=columns[3 + len(tokens) :]),
        *caveats(study["doubts"]),
    ]
    batch = study["recipe"]["batch"]["global_batch"]
    return Section(f"{study['task']}: gradient noise scale at {batch:,}", tuple(blocks), "Which batches do the gradients support?")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
