"""Efficiency over the number of workers, as a plot."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bigbatch.report.blocks import Block, Section, caveats, heading, plots, table, verdict
from bigbatch.report.plots import COLOURS, SVG_STYLE, to_svg, write_plot

FILE = "simulate.svg"
SHOWN = {  # strategy: colour, line
    "ring_all_reduce": (0, "-"),
    "halving_doubling": (0, "--"),
    "one_bucket": (0, ":"),
    "parameter_server": (0, "-."),
    "powersgd": (1, "-"),
    "local_sgd": (1, "--"),
    "asynchronous_server": (1, "-."),
    "diloco": (3, "-"),
    "diloco_int4": (3, "--"),
    "streaming_diloco": (3, ":"),
    "noloco": (3, "-."),
    "gossip_ring": (2, "-"),
    "gossip_one_peer_exponential": (2, "--"),
    "gossip_exponential": (2, ":"),
}
"""Drawn of all strategies; one colour for exact updates, one for compressed, rare and stale ones, one for outer steps, one for gossip."""
FOUR = (*COLOURS, "#7d5ba6")


def write_simulation(simulation: Mapping[str, Any], folder: Path) -> Path:
    """Write the plot of a simulation into a folder.

    Returns:
        Path of the SVG file.

    Raises:
        OutputError: If it can't be written.
    """
    return write_plot(draw_simulation(simulation), folder / FILE)


def draw_simulation(simulation: Mapping[str, Any]) -> str:
    """Efficiency of an update against the number of workers, which is logarithmic.

    Args:
        simulation: As `Simulation.to_dict` gives it.

    Returns:
        An `<svg>` element.
    """
    case = simulation["case"]
    size, step = f"{case['model_bytes'] / 1e6:,.3g} MB", f"{1000 * case['step_s']:,.3g} ms a step"
    speed = f"{8e-9 / case['link']['beta_s_per_byte']:,.3g} Gbit/s" if case["link"]["beta_s_per_byte"] else "any bandwidth"
    title = f"{size}, {step}, {speed}, {1e6 * case['link']['alpha_s']:,.3g} µs"
    with matplotlib.rc_context({**SVG_STYLE, "legend.loc": "center right"}):
        figure = Figure(figsize=(7.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for name, (colour, line) in SHOWN.items():
            points = [(row["workers"], 100 * row["efficiency"]) for row in simulation["rows"] if row["strategy"] == name]
            if not points:  # never done between two losses of a worker
                continue
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=FOUR[colour], ls=line, lw=1.6, marker=".", ms=4, label=name)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(simulation["workers"]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        right = max(simulation["workers"]) * max(4, max(simulation["workers"]) / min(simulation["workers"])) ** 0.75  # room for the names
        axes.set_xlim(0.8 * min(simulation["workers"]), right)
        axes.set_ylim(0, 105)
        axes.set_xlabel("workers (log)")
        axes.set_ylabel("efficiency of an update, %")
        if left := sorted({row["strategy"] for row in simulation["rows"]} - set(SHOWN)):
            words = f"not drawn, in the table: {', '.join(left)}"
            figure.supxlabel("\n".join(textwrap.wrap(words, 120, break_on_hyphens=False, break_long_words=False)), fontsize=7)
        return to_svg(figure, title)


def simulation_section(study: Mapping[str, Any]) -> Section:
    """Of a stored simulation, as `Simulation.to_dict` gives it."""
    most = max(study["workers"])
    columns = ["strategy", "exact", "time of an update", "efficiency", "samples/s", "sent by a host"]
    rows = [
        [
            row["strategy"],
            "yes" if row["exact"] else "no",
            f"{1000 * row['seconds']:,.4g} ms",
            f"{100 * row['efficiency']:.3g} %",
            f"{row['samples_per_s']:,.0f}",
            f"{row['sent_bytes'] / 1e6:,.3g} MB",
        ]
        for row in study["rows"]
        if row["workers"] == most
    ]
    blocks: list[Block] = [
        verdict(study["sentence"]),
        *([verdict(target)] if (target := (study.get("target") or {}).get("sentence")) else []),
        plots([draw_simulation(study)]),
        heading(f"{most:,} workers"),
        table(columns, rows, numbers=columns[2:]),
        *caveats(study["doubts"]),
    ]
    return Section("What each way to train on many workers would cost", tuple(blocks), "Which way of exchanging is the fastest here?")
