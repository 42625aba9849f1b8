"""Curvature in the report: what `bigbatch curvature` measured, as tables and plots, and the top eigenvalue of runs that recorded it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bigbatch.core.checks import InputError
from bigbatch.core.metric import metric_of
from bigbatch.core.storage.reading import exists, read_json, reason
from bigbatch.report.plots import COLOURS, SVG_STYLE, Points, Record, log_scale, shown, to_svg
from bigbatch.study.result_files import CURVATURE

DECADES = 7
"""Of a density, from its highest point down, that are drawn."""
SIZE = (5.2, 3.2)


def curvature_section(folder: Path) -> dict[str, Any] | None:
    """What the template shows of a run's `curvature.json`; None where there is none.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / CURVATURE
    if not exists(path):
        return None
    study = read_json(path, "measure again with `bigbatch curvature`")
    try:
        with matplotlib.rc_context(SVG_STYLE):
            plots = [draw_density(study), *([draw_loss(study), draw_score(study)] if study["path"] else [])]
        return {**{name: study[name] for name in ("sentence", "doubts", "tables", "samples", "parameters")}, "plots": plots}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:  # whatever a wrong value leads to
        what = f"{type(error).__name__}: {reason(error):.100}"
        raise InputError(f"{path}: is damaged ({what}); measure again with `bigbatch curvature`") from None


def top_eigenvalue(record: Record, against: str) -> Points:
    """The Hessian's largest eigenvalue against "samples" or "update", where the run recorded it."""
    looks = [line for line in record if line["kind"] == "curvature"]
    return [float(look[against]) for look in looks], [float(look["eigenvalues"][0]) for look in looks]


def trace_of(record: Record, against: str) -> Points:
    """The Hessian's trace against "samples" or "update", where the run recorded it."""
    looks = [line for line in record if line["kind"] == "curvature" and "trace" in line]
    return [float(look[against]) for look in looks], [float(look["trace"]["value"]) for look in looks]


def cost_of_looks(record: Record) -> str:
    """What a run's looks at its curvature cost, in words; empty where there were none."""
    looks, end = [line for line in record if line["kind"] == "curvature"], record[-1]
    if not looks:
        return ""
    seconds = sum(look["seconds"] for look in looks)
    share = f", {100 * seconds / end['train_s']:.1f} % of the time in updates" if end["kind"] == "end" and end["train_s"] else ""
    worst = max(residual for look in looks for residual in look["residuals"])
    return (
        f"{len(looks)} looks at the curvature took {seconds:.1f} s{share}; {sum(look['products'] for look in looks):,} products with the "
        f"Hessian, residuals of at most {worst:.1e}."
    )


def draw_density(study: Mapping[str, Any]) -> str:
    """Densities of the runs' spectra with their 95 % bands, and the largest eigenvalues.

    Args:
        study: As `CurvatureStudy.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _plot()
    top = max(max(run["density"]["mean"]) for run in study["runs"]) or 1.0
    bottom = top / 10**DECADES
    for colour, name, run in zip(COLOURS, study["names"], study["runs"], strict=False):
        x, mean, low, high = (np.asarray(run["density"][part], dtype=float) for part in ("x", "mean", "low", "high"))
        axes.plot(x, np.maximum(mean, bottom / 10), color=colour, lw=1.4, label=shown(name))
        axes.fill_between(x, np.maximum(low, bottom / 10), np.maximum(high, bottom / 10), color=colour, alpha=0.15, lw=0)
        axes.plot(run["eigenvalues"], [2 * bottom] * len(run["eigenvalues"]), color=colour, ls="", marker="v", ms=5)
    axes.set_yscale("log")
    axes.set_ylim(bottom, 3 * top)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("eigenvalue (triangles: the largest)")
    axes.set_ylabel("density (log)")
    return to_svg(figure, "Spectral density of the Hessian")


def draw_loss(study: Mapping[str, Any]) -> str:
    """Training loss on the straight line through two runs.

    Args:
        study: As `CurvatureStudy.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _plot()
    _line(axes, study, "loss", 1.0)
    is_log = log_scale(axes, "y")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.set_ylabel("training loss (log)" if is_log else "training loss")
    return to_svg(figure, "Training loss on the line through both")


def draw_score(study: Mapping[str, Any]) -> str:
    """Validation score on the straight line through two runs.

    Args:
        study: As `CurvatureStudy.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _plot()
    metric = metric_of(study["metric"])
    _line(axes, study, "score", metric.scale)
    axes.set_ylabel(f"validation {metric.label}")
    return to_svg(figure, f"Validation {metric} on the line through both")


def _plot() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _line(axes: Axes, study: Mapping[str, Any], what: str, times: float) -> None:
    """A quantity against alpha, with the two runs marked."""
    points = [point for point in study["path"] if point[what] is not None]
    axes.plot([p["alpha"] for p in points], [times * p[what] for p in points], color="0.35", lw=1.4, marker=".", ms=4)
    for at, name, colour in zip((0.0, 1.0), study["names"], COLOURS, strict=False):
        axes.axvline(at, color=colour, lw=1.4, ls="--", label=shown(name))
    axes.set_xlabel("position on the line: 0 the first, 1 the second")
