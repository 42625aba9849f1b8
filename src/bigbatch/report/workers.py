"""What workers have to say that don't go together by all-reduce: how far apart they were, how late gradients, how many bytes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from bigbatch.report.plots import COLOURS, Points, Record, start_of, to_svg


def worker_facts(record: Record) -> list[tuple[str, str]]:
    """Names and values for a table; empty for a run of all-reduce, or of one worker."""
    return [*_of_own_weights(record), *_of_server(record)]


def distances(record: Record, against: str) -> Points:
    """Distance of workers from their mean, in per cent of its length, at each evaluation, against "samples" or "update"."""
    lines = [line for line in record if line["kind"] == "evaluation" and line.get("relative_distance")]
    return [float(line[against]) for line in lines], [100 * float(line["relative_distance"]) for line in lines]


def staleness_of(record: Record) -> Mapping[int, int]:
    """Gradients by the updates that they were late by, over the whole run; empty where nothing was counted."""
    told = [line["histogram"] for line in record if line["kind"] == "staleness"]
    return {int(tau): count for tau, count in told[-1].items()} if told else {}


def draw_staleness(record: Record) -> str | None:
    """The histogram as an `<svg>` element; None where there is none."""
    histogram = staleness_of(record)
    if not histogram:
        return None
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(list(histogram), list(histogram.values()), color=COLOURS[0], alpha=0.75)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("staleness, updates")
    axes.set_ylabel("gradients")
    return to_svg(figure, "Staleness of gradients")


def _of_own_weights(record: Record) -> list[tuple[str, str]]:
    told = [line for line in record if line["kind"] == "evaluation" and "relative_distance" in line]
    if not told:
        return []
    apart = [line for line in told if line["relative_distance"]] or told
    facts = []
    if (start := start_of(record)) is not None:
        comm: Mapping[str, Any] = start["recipe"]["comm"]
        way = ", ".join(str(comm[name]) for name in ("kind", "method", "topology") if name in comm)
        facts += [("workers at the start", f"{start['workers']:,}: {way}")]
    facts += [("distance from their mean, before the last average", f"{100 * apart[-1]['relative_distance']:.3g} % of its length")]
    if "sent_bytes" in told[-1]:
        sent, updates = told[-1]["sent_bytes"] / 1e6, max(told[-1]["update"], 1)
        facts += [("sent to neighbours by the first worker", f"{sent:,.1f} MB, {sent / updates:.3g} MB an update")]
    return facts


def _of_server(record: Record) -> list[tuple[str, str]]:
    histogram, end = staleness_of(record), record[-1]
    if not histogram or end["kind"] != "end" or "staleness_bound" not in end:
        return []
    total = sum(histogram.values())
    mean = sum(tau * count for tau, count in histogram.items()) / total
    refused = ", ".join(f"{count:,} {why}" for why, count in end["refused"].items())
    moved = end["received_bytes"] + end["sent_bytes"]
    return [
        *([("workers at the start", f"{start['workers']:,}")] if (start := start_of(record)) is not None else []),
        ("gradients applied", f"{total:,}"),
        ("staleness, updates", f"{mean:.2f} on the mean, {max(histogram)} at most; bound {end['staleness_bound']}"),
        ("gradients refused", refused or "none"),
        ("gradients received", f"{end['received_bytes'] / 1e6:,.1f} MB"),
        ("weights sent", f"{end['sent_bytes'] / 1e6:,.1f} MB"),
        ("both, an update", f"{moved / 1e6 / max(end['updates'], 1):,.3f} MB"),
    ]
