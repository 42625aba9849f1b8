"""Draw the figures of docs/questions.md from what the other scripts of this folder measured.

python studies/discussion/figures.py
"""

import json
import statistics
import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import laws  # noqa: E402
import valleys  # noqa: E402

from bigbatch.core.storage.json_lines import readable_lines  # noqa: E402
from bigbatch.report.plots import COLOURS, SVG_STYLE, to_svg  # noqa: E402

STABLE = (2 + 2 * 0.9) / (1 + 2 * 0.9)
"""Largest stable product of rate and eigenvalue, of Nesterov's momentum of 0.9 on a quadratic."""
FIGURES = HERE.parents[1] / "docs" / "figures"


def warmup():
    """Largest eigenvalue times rate, and the loss, of the first updates."""
    lines = readable_lines(HERE / "warmup.jsonl")
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    sharp, loss = figure.subplots(1, 2)
    for rate, colour in zip((0.1, 0.2, 0.4), COLOURS, strict=True):
        for length, style in ((0, "--"), (50, "-")):
            runs = [line for line in lines if (line["rate"], line["warmup"]) == (rate, length)]
            updates = [u for u, _ in runs[0]["eigenvalue"] if u <= 100]
            middle = [statistics.median(dict(map(tuple, run["eigenvalue"])).get(u, np.nan) for run in runs) for u in updates]
            label = f"rate {rate:g}, {'at once' if length == 0 else 'after 50 updates'}"
            sharp.plot(updates, middle, style, color=colour, lw=1.3, label=label)
            shortest = min(len(run["loss"]) for run in runs)
            losses = np.median([run["loss"][:shortest] for run in runs], axis=0)[:100]
            loss.plot(range(1, len(losses) + 1), np.minimum(losses, 4.0), style, color=colour, lw=1.0, label=label)
        sharp.axhline(STABLE / rate, color=colour, lw=0.8, ls=":")
    sharp.set_yscale("log")
    sharp.set_ylabel("largest eigenvalue of the Hessian (log)")
    loss.set_ylabel("training loss (cut at 4)")
    for axes in (sharp, loss):
        axes.set_xlabel("updates")
    return figure, "fashion_mnist/mlp at a batch of 2,048: medians of three seeds"


def two_valleys():
    """Contours of the mean loss, and three ways through them."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    x, y = np.meshgrid(np.linspace(-3, 4, 141), np.linspace(-2.2, 2.2, 89))
    height = np.array([[valleys.mean_loss(np.array([a, b])) for a, b in zip(*row, strict=True)] for row in zip(x, y, strict=True)])
    axes.contour(x, y, height, levels=14, colors="grey", linewidths=0.5, alpha=0.7)
    ways = {
        "mean gradient": valleys.mean_gradient(0.3),
        "mean of weights every 4 steps": valleys.mean_of_weights(0.3, 4),
        "mean of weights every 100 steps": valleys.mean_of_weights(0.3, 100),
    }
    for (name, path), colour in zip(ways.items(), COLOURS, strict=True):
        along = np.array(path)
        axes.plot(
            along[:, 0], along[:, 1], color=colour, lw=1.4, marker="o", ms=2.5, label=f"{name}: ends at {valleys.mean_loss(along[-1]):.2f}"
        )
    axes.set_xlabel("first weight")
    axes.set_ylabel("second weight")
    return figure, "two valleys: the mean loss, and where three ways end"


def step_lengths():
    """Best effective rates against the batch, with the laws."""
    paths = sorted(laws.RESULTS.glob("*.json"))
    figure = Figure(figsize=(2.9 * len(paths), 3.8), layout="constrained")
    for axes, path in zip(figure.subplots(1, len(paths)), paths, strict=True):
        batches, updates, rates = laws.points_of(json.loads(path.read_text()))
        fits = laws.fits_of(batches, updates, rates)
        axes.plot(batches, rates, "o", color="black", ms=4, label="best found")
        for name, power, colour in (("root", 0.5, COLOURS[0]), ("linear", 1.0, COLOURS[1])):
            axes.plot(batches, fits[name]["level"] * batches**power, color=colour, lw=1.2, label=name)
        limited = 1 / (fits["lian"]["a"] + fits["lian"]["c"] * np.sqrt(updates / batches))
        axes.plot(batches, limited, color=COLOURS[2], lw=1.6, label="1/(a + c sqrt(K/M))")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("batch M (log)")
        axes.set_title(path.stem.replace("-", " "), fontsize=9)
    figure.axes[0].set_ylabel("lr/(1 - momentum) (log)")
    return figure, "the best rates of studies/steps, and three laws"


def main():
    FIGURES.mkdir(exist_ok=True)
    for name, draw in (("warmup", warmup), ("two_valleys", two_valleys), ("step_lengths", step_lengths)):
        with matplotlib.rc_context(SVG_STYLE):
            (FIGURES / f"{name}.svg").write_text(to_svg(*draw()))


if __name__ == "__main__":
    main()
