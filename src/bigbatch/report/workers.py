"""What workers that agree in other ways than by all-reduce have to say for themselves: how far apart they were, and what they sent."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Sequence[Mapping[str, Any]]


def distances(record: Record, against: str) -> tuple[list[float], list[float]]:
    """Distance of workers from their mean, in per cent of its length, at each evaluation, against "samples" or "update"."""
    lines = [line for line in record if line["kind"] == "evaluation" and line.get("relative_distance")]
    return [float(line[against]) for line in lines], [100 * float(line["relative_distance"]) for line in lines]


def facts_of(record: Record) -> list[tuple[str, str]]:
    """Lines for a table, what and how much; none for a run whose workers were never apart."""
    told = [line for line in record if line["kind"] == "evaluation" and "distance" in line]
    if not told:
        return []
    start, apart = record[0], [line for line in told if line["relative_distance"]] or told
    comm = start["recipe"]["comm"]
    way = ", ".join(str(comm[name]) for name in ("kind", "method", "topology") if name in comm)
    facts = [("workers", f"{start['workers']}: {way}")]
    facts += [("distance from their mean, before the last average", f"{100 * apart[-1]['relative_distance']:.3g} % of its length")]
    if "sent_bytes" in told[-1]:
        sent = told[-1]["sent_bytes"]
        facts += [("sent by the first worker", f"{sent / 1e6:,.1f} MB, {sent / max(told[-1]['update'], 1) / 1e6:.3g} MB an update")]
    return facts
