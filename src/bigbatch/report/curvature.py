"""Curvature in the report: what `bigbatch curvature` measured, as tables and plots, and the eigenvalue over a run that recorded it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigbatch.report.plots import COLOURS, SVG_STYLE, Points, Record, to_svg
from bigbatch.study.curvature import RESULT

LEAST_DENSITY = 1e-6
"""Of the highest: what lies below is not drawn."""


def curvature_section(folder: Path) -> dict[str, Any] | None:
    """What the template shows of a run's `curvature.json`; None where there is none."""
    path = folder / RESULT
    if not path.exists():
        return None
    study = json.loads(path.read_text())
    with matplotlib.rc_context(SVG_STYLE):
        plots = [draw_density(study)]
        if study["path"]:
            plots += [draw_path(study)]
    return {"sentence": study["sentence"], "doubts": study["doubts"], "tables": study["tables"], "plots": plots, "samples": study["samples"]}


def draw_density(study: Mapping[str, Any]) -> str:
    """Densities of the runs' spectra over symmetric logarithmic eigenvalues, with the largest ones marked.

    Args:
        study: As `CurvatureStudy.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    tops: list[float] = []
    for colour, name, run in zip(COLOURS, study["names"], study["runs"], strict=False):
        x, mean = (np.asarray(run["density"][part]) for part in ("x", "mean"))
        axes.plot(x, mean, color=colour, lw=1.4, label=name)
        axes.plot(run["eigenvalues"], [LEAST_DENSITY * 2 * mean.max()] * len(run["eigenvalues"]), color=colour, ls="", marker="^", ms=5)
        tops.append(float(mean.max()))
    axes.set_yscale("log")
    axes.set_ylim(LEAST_DENSITY * max(tops), 3 * max(tops))
    axes.set_xlabel("eigenvalue (triangles: the largest)")
    axes.set_ylabel("density (log)")
    return to_svg(figure, "Spectral density of the Hessian")


def draw_path(study: Mapping[str, Any]) -> str:
    """Training loss and validation score on the straight line through two runs.

    Args:
        study: As `CurvatureStudy.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    alphas = [point["alpha"] for point in study["path"]]
    axes.plot(alphas, [point["loss"] for point in study["path"]], color=COLOURS[0], lw=1.6, label="training loss (left)")
    axes.set_yscale("log")
    axes.set_xlabel(f"0: {study['names'][0]}, 1: {study['names'][1]}")
    axes.set_ylabel("training loss (log)")
    return to_svg(figure, "Along the line through both runs")
