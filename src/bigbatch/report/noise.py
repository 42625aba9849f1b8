"""The noise scale over a run, as a plot."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bigbatch.noise.norm_layers import NORMS
from bigbatch.noise.reader import ALL
from bigbatch.report.plots import COLOURS, SVG_STYLE, log_ticks, to_svg, write_plot

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
        axes.set_yscale("log")
        of = study.get("of", ALL)
        names = [name for name in study["stretches"][0]["parts"] if name != of]
        for name in names[:MOST_LAYERS]:
            xs, ys = _line(study, name)
            axes.plot(xs, ys, lw=1, alpha=0.6, label=name)
        xs, ys = _line(study, of)
        label = "norm layers alone" if of == NORMS else "whole model" if names else "noise scale"
        axes.plot(xs, ys, color=COLOURS[0], lw=2, marker="o", ms=4, label=label)
        top = 3 * max((y for y in ys if y > 0), default=1.0)
        for stretch in study["stretches"]:
            whole, x = stretch["parts"][of], (stretch["first"] + stretch["last"]) / 2
            if whole["lower"] is not None and whole["lower"] > 0:
                upper = whole["upper"]
                axes.plot([x, x], [whole["lower"], upper if upper is not None else top], color=COLOURS[0], lw=1.2, alpha=0.6)
                if upper is None:
                    axes.plot([x], [top], marker="^", color=COLOURS[0], ms=5)
        batch = study["recipe"]["batch"]["global_batch"]
        axes.axhline(batch, color="0.4", lw=1, ls=":", label=f"the recipe's batch, {batch:,}")
        log_ticks(axes.yaxis)
        axes.set_xlabel("updates")
        axes.set_ylabel("samples (log)")
        if tokens := study.get("tokens_per_sample"):
            beside = axes.secondary_yaxis("right", functions=(lambda samples: samples * tokens, lambda n: n / tokens))
            beside.set_ylabel("tokens (log)")
        return to_svg(figure, title)


def _line(study: Mapping[str, Any], part: str) -> tuple[list[float], list[float]]:
    """Middles of the stretches and their values; a gap where there is none."""
    values = [stretch["parts"][part]["noise_scale"] for stretch in study["stretches"]]
    return [(s["first"] + s["last"]) / 2 for s in study["stretches"]], [math.nan if v is None or v <= 0 else v for v in values]
