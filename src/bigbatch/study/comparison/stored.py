"""A comparison as `scale` stores it, for the report and for tables."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from bigbatch.core.checks import InputError
from bigbatch.core.metric import metric_of
from bigbatch.core.storage.reading import first_mistake, read_json

SUFFIX = ".comparison.json"
REMEDY = "type the `bigbatch scale` that wrote it again: finished runs are used as they are"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Run(_Part):
    updates: int
    diverged: bool
    test_score: float | None
    samples_per_s: float | None
    train_s: float | None


class _Arm(_Part):
    name: str
    folder: Annotated[str, Field(pattern=r"^[\w.-]{1,200}$")]
    global_batch: int
    results: Annotated[list[_Run], Field(min_length=1)]
    outcome: str | None
    sentence: str


class _Change(_Part):
    field: str
    before: Any
    after: Any
    why: str
    paper: str


class _Comparison(_Part):
    task: str
    metric: Annotated[Any, AfterValidator(metric_of)]
    rule: str
    reason: str
    warnings: list[str]
    changes: list[_Change]
    arms: Annotated[list[_Arm], Field(min_length=3, max_length=3)]
    expectation: str = ""
    constant_in_words: str = ""
    advice: str = ""


def read_comparison(path: Path) -> dict[str, Any]:
    """What `Comparison.to_dict` gave; of earlier versions without what they did not have.

    Raises:
        InputError: If the file can't be read, or holds something else.
    """
    comparison = read_json(path, REMEDY)
    try:
        _Comparison.model_validate(comparison)
    except ValidationError as error:
        raise InputError(f"{path}: is damaged: {first_mistake(error)}; {REMEDY}") from None
    return comparison


class Row(NamedTuple):
    """One line of the table of a comparison."""

    arm: str
    global_batch: str
    score: str
    updates: str
    samples_per_s: str
    seconds: str
    diverged: str
    samples: str  # of one run
    hours: str  # of all runs together


def rows_of(comparison: Mapping[str, Any]) -> Iterator[Row]:
    """The table of a stored comparison: one row an arm, over the runs that did not diverge."""
    metric = metric_of(comparison["metric"])
    for arm in comparison["arms"]:
        good = [result for result in arm["results"] if not result["diverged"]]
        scores = [metric.shown(result["test_score"]) for result in good if result["test_score"] is not None]
        spread = f" ± {metric.number(statistics.stdev(scores))}" if len(scores) > 1 else ""
        yield Row(
            arm["name"],
            f"{arm['global_batch']:,}",
            metric.with_unit(f"{metric.number(statistics.fmean(scores))}{spread}") if scores else "-",
            f"{(good or arm['results'])[0]['updates']:,}",
            f"{statistics.median(speeds):,.0f}" if (speeds := [s for r in good if (s := r["samples_per_s"]) is not None]) else "-",
            f"{statistics.median(times):.1f}" if (times := [s for r in good if (s := r["train_s"]) is not None]) else "-",
            f"{len(arm['results']) - len(good)} of {len(arm['results'])}",
            f"{samples:,}" if (samples := (good or arm["results"])[0].get("samples")) is not None else "-",
            f"{sum(times) / 3600:.2g}" if times else "-",
        )
