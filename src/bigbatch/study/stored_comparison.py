"""A comparison as `scale` stores it, for the report."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bigbatch.core.checks import InputError
from bigbatch.core.reading import first_mistake, read_json

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
    metric: str
    rule: str
    reason: str
    warnings: list[str]
    changes: list[_Change]
    arms: Annotated[list[_Arm], Field(min_length=3, max_length=3)]
    expectation: str = ""


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
