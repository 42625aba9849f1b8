"""One self-contained HTML file for a folder of comparisons, or for a single run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib

from bigbatch.core.checks import InputError, UserError
from bigbatch.core.files import write_atomically
from bigbatch.core.metric import ACCURACY, Metric, metric_of
from bigbatch.core.reading import exists
from bigbatch.core.version import __version__
from bigbatch.recipe import Recipe
from bigbatch.report.curvature import cost_of_looks, curvature_section, top_eigenvalue, trace_of
from bigbatch.report.plots import (
    SVG_STYLE,
    Points,
    Record,
    batch_size_changes,
    draw,
    global_batch,
    learning_rate,
    start_of,
    training_loss,
    validation_score,
)
from bigbatch.report.workers import distances, draw_staleness, worker_facts
from bigbatch.scaling import readable
from bigbatch.study.stored_comparison import SUFFIX, read_comparison, rows_of
from bigbatch.train.state.record_lines import read_record


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a folder that `bigbatch scale` or `bigbatch train --out` wrote.

    Returns:
        Path of the report.

    Raises:
        UserError: If the folder holds nothing to report.
        OutputError: If the report can't be written.
    """
    folder = Path(folder)
    comparisons = sorted(folder.glob(f"*{SUFFIX}"), key=_by_batch) if exists(folder) else []
    if comparisons:
        sections = [_comparison(folder, path) for path in comparisons]
    elif exists(folder / "record.jsonl"):
        sections = [_single_run(folder)]
    else:
        raise UserError(f"{folder}: holds neither a comparison nor a run; name the --out folder of `bigbatch scale` or `bigbatch train`")
    loader = jinja2.PackageLoader("bigbatch.report", "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    templates.filters["readable"] = readable
    page = templates.get_template("report.html.j2")
    path = folder / "report.html"
    names = {section["metric"] for section in sections}
    text = page.render(sections=sections, metric=names.pop() if len(names) == 1 else "the score", version=__version__)
    write_atomically(path, text.encode())
    return path


def _by_batch(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.name.split("-")[1] if c.isdigit()) if "-" in path.name else ""
    return int(digits or 0), path.name


def _comparison(folder: Path, path: Path) -> dict[str, Any]:
    comparison = read_comparison(path)
    records = {
        f"{arm['name']} ({arm['global_batch']:,})": [read_record(run / "record.jsonl") for run in _runs(folder / arm["folder"], arm)]
        for arm in comparison["arms"]
    }
    reference, only, planned = comparison["arms"]
    return {
        "metric": metric_of(comparison["metric"]).name,
        "title": f"{comparison['task']}: {reference['global_batch']:,} to {only['global_batch']:,}",
        "comparison": comparison,
        "rows": rows_of(comparison),
        "plots": list(_plots(records, metric_of(comparison["metric"]))),
        "environment": _environment(next(iter(records.values()))),
        "verdicts": [(arm["outcome"], arm["sentence"]) for arm in (only, planned)],
        "expectation": comparison.get("expectation", ""),
        "recipe": None,
        "decisions": [],
        "workers": [],
        "looks": "",
        "curvature": None,
    }


def _single_run(folder: Path) -> dict[str, Any]:
    record = read_record(folder / "record.jsonl")
    if not record:
        raise InputError(f"{folder / 'record.jsonl'}: holds no line that can be read; continue the run, or restore a copy")
    recipe, start = _recipe_of(folder, record), start_of(record)
    stated = (start or {}).get("metric")  # earlier versions, and tasks whose metric has only a name, leave it out
    metric = metric_of(stated or "score")
    return {
        "metric": metric.name if stated else ACCURACY.name,
        "title": f"{start['task'] if start else recipe.task}: one run at {recipe.batch.global_batch:,}",
        "comparison": None,
        "rows": [],
        "plots": [*_plots({"run": [record]}, metric), *_staleness(record)],
        "environment": _environment([record]),
        "verdicts": [],
        "expectation": "",
        "recipe": recipe.to_toml(),
        "decisions": [line for line in record if line["kind"] == "batch" and line["before"] != line["after"]],
        "workers": worker_facts(record),
        "looks": cost_of_looks(record),
        "curvature": curvature_section(folder),
    }


def _recipe_of(folder: Path, record: Record) -> Recipe:
    """From its file; from the record's first line where that is missing."""
    path, start = folder / "recipe.toml", start_of(record)
    if start is None or exists(path):
        return Recipe.load(path, saved=True)
    return Recipe.from_saved(start["recipe"])


def _staleness(record: Record) -> Iterator[str]:
    with matplotlib.rc_context(SVG_STYLE):
        plot = draw_staleness(record)
    if plot is not None:
        yield plot


def _runs(folder: Path, arm: dict[str, Any]) -> list[Path]:
    runs = (run for run in folder.glob("seed-*") if run.name.removeprefix("seed-").isdecimal())
    return sorted(runs, key=lambda run: int(run.name.removeprefix("seed-")))[: len(arm["results"])]


def _plots(records: Mapping[str, Sequence[Record]], metric: Metric) -> Iterator[str]:
    """Those that there are values for: a function or a command may tell no losses, or nothing on the way."""
    scores: Callable[[Record, str], Points] = partial(validation_score, metric=metric)

    def told(points: Callable[[Record, str], Points], against: str = "update") -> bool:
        return any(points(record, against)[0] for runs in records.values() for record in runs)

    with matplotlib.rc_context(SVG_STYLE):
        for against in ("samples", "update"):
            by = "samples" if against == "samples" else "updates"
            if told(training_loss):
                yield draw(records, training_loss, against=against, ylabel="training loss", title=f"Training loss by {by}")
            named = {"ylabel": f"validation {metric.label}", "title": f"Validation {metric} by {by}"}
            if told(scores):
                yield draw(records, scores, against=against, **named, dots=True)
        if told(learning_rate):
            yield draw(records, learning_rate, against="samples", ylabel="learning rate", title="Learning rate by samples")
        if any(batch_size_changes(record) for runs in records.values() for record in runs):
            yield draw(records, global_batch, against="samples", ylabel="global batch, samples", title="Global batch by samples")
        if told(distances, "samples"):
            yield draw(records, distances, against="samples", ylabel="% of the mean's length", title="Distance of workers from their mean")
        for points, name in ((top_eigenvalue, "Top eigenvalue"), (trace_of, "Trace")):
            if told(points):
                yield draw(records, points, against="update", ylabel="of the Hessian", title=f"{name} by updates")


def _environment(records: Sequence[Record]) -> dict[str, Any]:
    for record in records:
        if (start := start_of(record)) is not None:
            return dict(start["environment"])
    return {}
