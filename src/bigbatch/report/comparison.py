"""The sections of what `bigbatch scale` left: a comparison each, and the runs of one that is not finished."""

from pathlib import Path
from typing import Any

from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.storage.reading import exists
from bigbatch.report.blocks import Block, Section, advice, heading, note, plots, table, verdict
from bigbatch.report.curves import curves, environment_of
from bigbatch.scaling import readable
from bigbatch.study.all_runs.runs import natural, runs
from bigbatch.study.all_runs.table import RunRow
from bigbatch.study.comparison.stored import SUFFIX, read_comparison, rows_of
from bigbatch.train.state.record_lines import read_record

COLUMNS = ("arm", "global batch", "updates", "samples/s", "seconds", "diverged", "samples", "hours, all runs")
PAIRED = (
    "Arms are compared seed by seed: runs of one seed share their initial weights and the order of the data. Mean and standard deviation "
    "over seeds; the test set is used once a run, with the final weights. Seconds and samples/s are medians of the time in updates."
)


def comparison_sections(folder: Path) -> list[Section]:
    """Of all comparisons in a folder, the smallest batch first; then of runs that no comparison is there for yet.

    Raises:
        InputError: If a file of one is damaged.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"), key=_by_batch)
    stored = [(path, read_comparison(path)) for path in paths]
    known = {arm["folder"] for _, comparison in stored for arm in comparison["arms"]}
    sections = [_comparison(folder, comparison) for _, comparison in stored]
    return sections + _unfinished(folder, known)


def _by_batch(path: Path) -> tuple[int, str]:
    digits = "".join(c for c in path.name.split("-")[1] if c.isdigit()) if "-" in path.name else ""
    return int(digits or 0), path.name


def _comparison(folder: Path, comparison: dict[str, Any]) -> Section:
    metric = metric_of(comparison["metric"])
    records = {
        f"{arm['name']} ({arm['global_batch']:,})": [read_record(run / "record.jsonl") for run in runs_of(folder / arm["folder"], arm)]
        for arm in comparison["arms"]
    }
    reference, only, planned = comparison["arms"]
    told = [comparison.get("constant_in_words", ""), comparison.get("expectation", "")]
    blocks: list[Block] = [
        *([advice(comparison["advice"])] if comparison.get("advice") else []),
        *(verdict(arm["sentence"], arm["outcome"]) for arm in (only, planned)),
        _scores(comparison, metric),
        *(note(f"{text[:1].upper()}{text[1:]}.") for text in told if text),
        note(PAIRED),
        *_plan(comparison),
        heading("Curves"),
        plots(curves(records, metric)),
        note(environment_of(next(iter(records.values())))),
    ]
    title = f"{comparison['task']}: {reference['global_batch']:,} to {only['global_batch']:,}"
    return Section(title, tuple(blocks), f"Did {metric} hold when the batch grew? Every run's record lies beside this file.")


def _scores(comparison: dict[str, Any], metric: Metric) -> Block:
    first, batch, *others = COLUMNS
    columns = [first, batch, f"test {metric}", *others]
    rows = [
        [r.arm, r.global_batch, r.score, r.updates, r.samples_per_s, r.seconds, r.diverged, r.samples, r.hours] for r in rows_of(comparison)
    ]
    return table(columns, rows, numbers=columns[1:])


def _plan(comparison: dict[str, Any]) -> list[Block]:
    columns = ["field", "before", "after", "why", "paper"]
    rows = [[c["field"], readable(c["before"]), readable(c["after"]), c["why"], c["paper"]] for c in comparison["changes"]]
    blocks = [heading(f"What the plan changes (rule: {comparison['rule']}, {comparison['reason']})")]
    blocks.append(table(columns, rows, code=["field"], stacked=True))
    if comparison["warnings"]:
        blocks += [heading("Warnings"), Block("list", of={"items": comparison["warnings"]})]
    return blocks


def runs_of(folder: Path, arm: dict[str, Any]) -> list[Path]:
    """Folders of an arm's runs, by their seeds."""
    return seeds_in(folder)[: len(arm["results"])]


def seeds_in(folder: Path) -> list[Path]:
    """Folders of runs, by their seeds."""
    found = (run for run in folder.glob("seed-*") if run.name.removeprefix("seed-").isdecimal())
    return sorted(found, key=lambda run: int(run.name.removeprefix("seed-")))


def _unfinished(folder: Path, known: set[str]) -> list[Section]:
    """The runs of arms that no stored comparison names."""
    arms = sorted((arm for arm in folder.iterdir() if arm.is_dir() and arm.name not in known and seeds_in(arm)), key=_order)
    if not arms or not (exists(folder / "reference") or known):
        return []
    rows = [(arm, runs(arm).runs) for arm in arms]
    metric = next((run.metric for _, found in rows for run in found if run.score is not None), metric_of("score"))
    finished = sum(run.state == "finished" for _, found in rows for run in found)
    others = sum(run.state != "finished" for _, found in rows for run in found)
    words = f"not finished: {finished} run{'s' * (finished != 1)} finished, {others} not; the same `bigbatch scale` goes on from here"
    cells = [
        [arm.name, run.path, _score(run), "-" if run.updates is None else f"{run.updates:,}", _seconds(run), run.state]
        for arm, found in rows
        for run in found
    ]
    columns = ["arm", "run", str(metric), "updates", "seconds", "state"]
    records = {arm.name: [read_record(run / "record.jsonl") for run in seeds_in(arm)] for arm in arms}
    blocks = [
        verdict(words),
        table(columns, cells, numbers=columns[2:5]),
        heading("Curves"),
        plots(curves({name: [r for r in found if r] for name, found in records.items()}, metric)),
    ]
    task = next((run.task for _, found in rows for run in found if run.task), "a comparison")
    return [Section(f"{task}: a comparison that is not finished", tuple(blocks), "Runs so far; there is no verdict yet.")]


def _order(arm: Path) -> tuple[bool, Any]:
    return arm.name != "reference", natural(arm.name)


def _score(run: RunRow) -> str:
    return "-" if run.score is None else run.metric.text(run.score) + (" (validation)" if run.split == "validation" else "")


def _seconds(run: RunRow) -> str:
    return "-" if run.seconds is None else f"{run.seconds:,.1f}"
