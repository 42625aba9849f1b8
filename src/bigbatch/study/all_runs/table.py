"""Runs as a table for the terminal, as JSON and as CSV: sorted by any column, with the fields of their recipes that differ."""

import csv
import io
import json
import math
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from bigbatch.core.checks import UserError, unknown
from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.notebook import Content, Displayed
from bigbatch.recipe.sections import TAGS
from bigbatch.scaling import readable
from bigbatch.study.tables import Table

STATES = ("finished", "running", "stopped", "failed", "diverged", "damaged")
COLUMNS = ("run", "score", "updates", "seconds", "state")
FACTS = ("score", "split", "updates", "seconds", "state", "note")
ABSENT = "-"
UNKNOWN = metric_of("score")
"""Of a run whose task is not known here, and whose record does not say."""


@dataclass(frozen=True)
class RunRow:
    """One run."""

    path: str  # below the folder that was looked through; FILE:LINE of one that a study keeps in a line
    state: str  # of STATES
    note: str = ""  # what is damaged, and what to do
    task: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)  # dotted, of the recipe; none where it can't be read
    metric: Metric = UNKNOWN  # of the score
    score: float | None = None
    split: str = ""  # what the score is of: test, or validation where the test set was not used
    updates: int | None = None
    seconds: float | None = None  # in updates


@dataclass(frozen=True, repr=False)
class RunsTable(Displayed):
    """The runs below a folder.

    Attributes:
        folder: That was looked through.
        runs: In order.
        unreadable: Folders below that may not be read.
    """

    folder: str
    runs: tuple[RunRow, ...]
    unreadable: tuple[str, ...] = ()

    @cached_property
    def differing(self) -> tuple[str, ...]:
        """Fields in which the recipes of two runs differ, in the recipes' order."""
        known = [run.fields for run in self.runs if run.fields]
        names = dict.fromkeys(name for fields in known for name in fields)
        return tuple(name for name in names if len({repr(fields.get(name)) for fields in known}) > 1)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Each differing field by a short name: the end of its own that no other field has, without the `kind` or `name` of a section."""
        spoken = {name: _without_tag(name) for run in self.runs for name in run.fields}
        return {_shortest(spoken[name], spoken.values()): name for name in self.differing}

    @property
    def metric(self) -> Metric | None:
        """What the scores are; None where runs have several metrics."""
        metrics = {run.metric for run in self.runs if run.score is not None}
        return next(iter(metrics), UNKNOWN) if len(metrics) <= 1 else None

    def sorted_by(self, column: str) -> "RunsTable":
        """The same runs in the order of a column; those that have no value there come last.

        Args:
            column: run, score, updates, seconds, state, or a field of a recipe, by its name or the end of it; with "-" before it from
                the largest down.

        Raises:
            UserError: If there is no such column.
        """
        name, falls = column.removeprefix("-"), column.startswith("-")
        fields = {**{full: full for run in self.runs for full in run.fields}, **self.labels}
        if name not in COLUMNS and name not in fields:
            raise UserError(f"--sort {column}: " + unknown("column", name, [*COLUMNS, *self.labels]))
        values = [self._value(position, name, fields.get(name, "")) for position in range(len(self.runs))]
        there = [position for position, value in enumerate(values) if value is not None]
        there.sort(key=lambda position: _order(values[position]), reverse=falls)
        absent = [position for position, value in enumerate(values) if value is None]
        return replace(self, runs=tuple(self.runs[position] for position in (*there, *absent)))

    def _value(self, position: int, column: str, of_recipe: str) -> Any:
        run = self.runs[position]
        match column:
            case "run":
                return position
            case "state":
                return STATES.index(run.state)
            case "score" | "updates" | "seconds":
                return getattr(run, column)
        return run.fields.get(of_recipe)

    def table(self, width: int) -> Table:
        """For a terminal of so many characters: a column for each differing field; where that is too wide, a line below each run's path."""
        fields = [[_cell(run.fields.get(name)) for name in self.differing] for run in self.runs]
        measured = [[*_measured(run, self.metric), run.state] for run in self.runs]
        last = [self.metric.label if self.metric is not None else "score", "updates", "seconds", "state"]
        columns = ["run", *self.labels, *last]
        rows = [[run.path, *own, *rest] for run, own, rest in zip(self.runs, fields, measured, strict=True)]
        if self.differing and _width(columns, rows) > width:
            columns = ["run", *last]
            room = max(20, width - _width(last, measured) - 3)
            below = [[f"{name}={cell}" for name, cell in zip(self.labels, own, strict=True) if cell != ABSENT] for own in fields]
            names = [f"{run.path}\n{_indented(own, room)}".rstrip() for run, own in zip(self.runs, below, strict=True)]
            rows = [[name, *rest] for name, rest in zip(names, measured, strict=True)]
        return Table(f"{self.folder}: {self._counts()}", columns, rows, {*self.labels, *last[:-1]})

    def words(self) -> Iterator[str]:
        """What the table's cells mean, what is damaged, and what could not be looked at."""
        if any(run.split == "validation" for run in self.runs):
            yield "val: of the validation set, where the test set was not used"
        if any(run.state == "stopped" for run in self.runs):
            yield "stopped: can be resumed, by the same command and --resume"
        if any(run.state == "failed" for run in self.runs):
            yield "failed: failed.txt and stderr.txt in its folder say why; the same command makes it again"
        for run in self.runs:
            if run.note:
                yield f"{run.path}: {run.note}"
        if self.unreadable:
            more = f" and {len(self.unreadable) - 3:,} more" if len(self.unreadable) > 3 else ""
            yield f"may not be read: {', '.join(self.unreadable[:3])}{more}"

    def shown(self) -> Content:
        """What a notebook shows: how many runs in which state, and a row a run with the fields that differ."""
        rows = [[run.path, *(run.fields.get(name) for name in self.differing), *_facts(run).values()] for run in self.runs]
        return Content([f"{self.folder}: {self._counts()}", *self.words()], ["run", *self.differing, *FACTS], rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the fields that differ with each run, those that all recipes have in common once."""
        known = [run.fields for run in self.runs if run.fields]
        return {
            "folder": self.folder,
            "metric": self.metric.to_plain() if self.metric is not None else None,
            "differing": list(self.differing),
            "common": {name: _plain(value) for name, value in (known[0] if known else {}).items() if name not in self.differing},
            "runs": [
                {
                    "run": run.path,
                    "fields": {name: _plain(run.fields.get(name)) for name in self.differing},
                    **_facts(run),
                    "task": run.task or None,
                }
                for run in self.runs
            ],
            "unreadable": list(self.unreadable),
        }

    def to_csv(self) -> str:
        """A line for each run; fields of recipes by their dotted names, scores as a task gives them, nothing where there is no value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", *self.differing, *FACTS])
        for run in self.runs:
            writer.writerow([run.path, *(_csv(run.fields.get(name)) for name in self.differing), *_facts(run).values()])
        return text.getvalue()

    def _counts(self) -> str:
        counts = Counter(run.state for run in self.runs)
        states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
        return f"{len(self.runs):,} run{'s' if len(self.runs) != 1 else ''}" + (f", {states}" if states else "")


def printable(text: str) -> str:
    r"""A name that any terminal and any file can hold: control characters, and bytes that are no text, as a replacement character.

    >>> printable("a\x1b/b") == "a\ufffd/b"
    True
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _facts(run: RunRow) -> dict[str, Any]:
    """What the forms for other programs have of a run besides its recipe."""
    return {name: None if (value := getattr(run, name)) == "" else value for name in FACTS}


def _measured(run: RunRow, metric: Metric | None) -> list[str]:
    """Score, updates and seconds; the score without its unit where the column's head has it."""
    score = ABSENT
    if run.score is not None:
        score = run.metric.text(run.score) if metric is None else metric.number(metric.shown(run.score))
        score += " val" if run.split == "validation" else ""
    updates = ABSENT if run.updates is None else f"{run.updates:,}"
    return [score, updates, ABSENT if run.seconds is None else f"{run.seconds:,.1f}"]


def _cell(value: Any) -> str:
    """A field's value in a table."""
    if isinstance(value, tuple | list):
        return ",".join(map(_cell, value)) or ABSENT
    return ABSENT if value is None else printable(readable(value))


def _plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _csv(value: Any) -> Any:
    """A field's value as CSV has it: truth values and lists as in JSON."""
    plain = _plain(value)
    return json.dumps(plain) if isinstance(plain, bool | list) else printable(plain) if isinstance(plain, str) else plain


def _order(value: Any) -> tuple[int, float, str]:
    """A key for values of any kind: numbers by size, then all else by its text."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return 0, value, ""
    return 1, 0.0, str(value)


def _without_tag(name: str) -> str:
    """The section, for the field that says which kind of it is meant.

    >>> _without_tag("schedule.decay.kind"), _without_tag("optimizer.lr")
    ('schedule.decay', 'optimizer.lr')
    """
    section, _, last = name.rpartition(".")
    return section if TAGS.get(section) == last else name


def _indented(words: list[str], width: int) -> str:
    return textwrap.fill(" ".join(words), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _shortest(name: str, names: Collection[str]) -> str:
    """The shortest end of a dotted name that neither another one nor a column has.

    >>> names = ["optimizer.lr", "schedule.warmup.epochs", "budget.epochs", "budget.updates"]
    >>> [_shortest(name, names) for name in names]
    ['lr', 'warmup.epochs', 'budget.epochs', 'budget.updates']
    """
    parts = name.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts) - 1, 0, -1)]
    others = [f".{other}" for other in names if other != name]
    return next((end for end in ends if end not in COLUMNS and not any(other.endswith(f".{end}") for other in others)), name)


def _width(columns: list[str], rows: list[list[str]]) -> int:
    """Characters of a table with its borders."""
    return sum(3 + max(map(len, cells)) for cells in zip(columns, *rows, strict=True)) + 1
