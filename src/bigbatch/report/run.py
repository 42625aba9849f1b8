"""The section of one run: what it reached, in how many updates and how much time; then its curves, and all else that it recorded."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib

from bigbatch.core.checks import InputError
from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.storage.reading import exists
from bigbatch.recipe import Recipe
from bigbatch.report.blocks import Block, Section, caveats, facts, heading, note, plots, table, text_of, verdict
from bigbatch.report.curvature import cost_of_looks, curvature_section
from bigbatch.report.curves import curves, environment_of
from bigbatch.report.plots import SVG_STYLE, Record, start_of
from bigbatch.report.workers import draw_staleness, worker_facts
from bigbatch.study.all_runs.runs import runs
from bigbatch.study.all_runs.table import UNKNOWN, RunRow
from bigbatch.train.state.record_lines import read_record
from bigbatch.train.state.result import Result

RECORD = "record.jsonl"


def run_section(folder: Path) -> Section:
    """Of the run in a folder, finished or not.

    Raises:
        InputError: If nothing of its record can be read.
        RecipeError: If its recipe is missing, or damaged.
    """
    record = read_record(folder / RECORD)
    if not record:
        raise InputError(f"{folder / RECORD}: holds no line that can be read; continue the run with --resume, or restore a copy")
    recipe, start = _recipe_of(folder, record), start_of(record)
    stated = (start or {}).get("metric")  # earlier versions, and tasks whose metric has only a name, leave it out
    row = next((run for run in runs(folder).runs if run.path == "."), RunRow(".", "stopped"))
    metric = row.metric if row.metric != UNKNOWN else metric_of(stated) if stated else UNKNOWN
    task = start["task"] if start else recipe.task
    blocks: list[Block] = [
        verdict(_in_words(row, metric, record)),
        facts(_facts(folder, row, metric, recipe, record)),
        plots([*curves({"run": [record]}, metric), *_staleness(record)]),
        *_decisions(record),
        *([heading("Workers"), facts(told)] if (told := worker_facts(record)) else []),
        *([note(looks)] if (looks := cost_of_looks(record)) else []),
        *_curvature(folder),
        text_of("Recipe", recipe.to_toml()),
        note(environment_of([record])),
    ]
    title = f"{task}: one run at {recipe.batch.global_batch:,}"
    return Section(title, tuple(blocks), "What one run reached, and how it went.")


def _in_words(row: RunRow, metric: Metric, record: Record) -> str:
    """The state of the run, and its score."""
    score = f"{row.split} {metric} {metric.text(row.score)}" if row.score is not None else "no score yet"
    at = f" after {row.updates:,} updates" if row.updates is not None else ""
    if row.state == "diverged":
        last = next((line for line in reversed(record) if line["kind"] == "diverged"), None)
        return f"diverged{at}" + (f": the loss was {last['loss']}" if last else "")
    words = f"{score}{at}"
    if row.state == "finished":
        return words
    if row.state == "damaged":
        return f"{words}; damaged: {row.note}"
    remedy = {"stopped": "; the command that began it goes on with --resume", "failed": "; failed.txt says why"}.get(row.state, "")
    return f"not finished ({row.state}): {words}{remedy}"


def _facts(folder: Path, row: RunRow, metric: Metric, recipe: Recipe, record: Record) -> Iterator[tuple[str, str]]:
    """Names and values, the most asked for first."""
    yield "state", row.state
    result = Result.load(folder / "result.json") if row.state == "finished" and exists(folder / "result.json") else None
    if result is not None:
        for name, value in (
            (f"test {metric}", result.test_score),
            (f"validation {metric}", result.validation_score),
            (f"best validation {metric}", result.best_validation_score),
        ):
            if value == value:
                yield name, metric.text(value)
        if result.test_loss == result.test_loss:
            yield "test loss", f"{result.test_loss:.4g}"
    else:
        newest = {line["split"]: line for line in record if line["kind"] == "evaluation"}
        for split, line in newest.items():
            yield f"{split} {metric}, newest", f"{metric.text(float(line['score']))} after {line['update']:,} updates"
    reached = max((line["update"] for line in record if "update" in line), default=0)
    samples = max((line["samples"] for line in record if "samples" in line), default=0)
    updates = result.updates if result is not None else row.updates if row.updates is not None else reached
    yield "updates", f"{updates:,}" + (f" of {recipe.num_updates:,}" if recipe.batch.rule is None and updates < recipe.num_updates else "")
    yield "samples", f"{samples:,}, {samples / recipe.num_train_samples:.3g} epochs"
    if row.seconds is not None:
        yield "time in updates", f"{row.seconds:,.1f} s"
    if result is not None and result.samples_per_s == result.samples_per_s:
        yield "speed", f"{result.samples_per_s:,.0f} samples/s"
    yield "global batch", f"{recipe.batch.global_batch:,}" + (", changed on the way" if recipe.batch.rule is not None else "")


def _decisions(record: Record) -> list[Block]:
    """Changes of the batch."""
    told = [line for line in record if line["kind"] == "batch" and line["before"] != line["after"]]
    if not told:
        return []
    columns = ["after update", "before", "after", "why"]
    rows = [[f"{line['update']:,}", f"{line['before']:,}", f"{line['after']:,}", line["reason"]] for line in told]
    return [heading("Changes of the batch"), table(columns, rows, numbers=columns[:3])]


def _curvature(folder: Path) -> list[Block]:
    """What `bigbatch curvature` measured."""
    found = curvature_section(folder)
    if found is None:
        return []
    blocks: list[Block] = [heading("Curvature"), verdict(found["sentence"]), plots(found["plots"])]
    for each in found["tables"]:
        blocks += [heading(each["title"]), table(each["columns"], each["rows"], numbers=each["columns"][1:])]
    of = f"Of the mean loss over {found['samples']:,} training samples, {found['parameters']:,} parameters, evaluation mode."
    return [*blocks, note(of), *caveats(found["doubts"])]


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
