"""What a line of `record.jsonl` holds, by its kind: what is not so was damaged."""

import itertools
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bigbatch.core.metric import metric_of
from bigbatch.core.storage.json_lines import Damage, Line, Lines, read_lines
from bigbatch.core.storage.reading import first_mistake

Count = Annotated[int, Field(ge=0)]
MaybeNumber = Annotated[float, Field(allow_inf_nan=True)]  # a task's own score may be NaN


class _Kind(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Start(_Kind):
    kind: Literal["start"]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    task: str
    workers: Count = 1
    metric: Annotated[Any, AfterValidator(metric_of)] = "score"


class _At(_Kind):
    update: Count
    samples: Count


class _Update(_At):
    kind: Literal["update"]
    loss: float
    lr: float
    global_batch: Count


class _Reported(_At):
    kind: Literal["reported"]
    loss: float | None
    facts: dict[str, float | None]


class _NotFinite(_At):
    kind: Literal["lost", "diverged"]
    loss: str


class _Noise(_At):
    kind: Literal["noise"]
    signal_and_noise: dict[str, Annotated[list[float | None], Field(min_length=2, max_length=2)]]


class _WeightDistance(_At):
    kind: Literal["weight_distance"]
    distance: float


class _Trace(_Kind):
    value: float


class _Curvature(_At):
    kind: Literal["curvature"]
    eigenvalues: Annotated[list[float], Field(min_length=1)]
    residuals: Annotated[list[MaybeNumber], Field(min_length=1)]
    products: Count
    seconds: float
    trace: _Trace | None = None


class _Batch(_At):
    kind: Literal["batch"]
    before: Count
    after: Count
    reason: str


class _Switch(_At):
    kind: Literal["switch"]


class _Staleness(_At):
    kind: Literal["staleness"]
    histogram: dict[Annotated[str, Field(pattern=r"^\d{1,18}$")], Count]


class _Evaluation(_At):
    kind: Literal["evaluation"]
    split: str
    loss: float | None  # None: a function or a command told a score alone
    score: MaybeNumber
    distance: float = 0.0
    relative_distance: float = 0.0
    sent_bytes: float = 0.0


class _End(_At):
    kind: Literal["end"]
    updates: Count = 0
    train_s: float | None = None
    staleness_bound: Count = 0
    refused: dict[str, Count] = {}
    received_bytes: float = 0.0
    sent_bytes: float = 0.0


class _Repaired(_At):
    kind: Literal["repaired"]
    missing: list[Annotated[list[Count], Field(min_length=2, max_length=2)]]


_AnyLine = Annotated[
    _Start
    | _Update
    | _Reported
    | _NotFinite
    | _Noise
    | _WeightDistance
    | _Curvature
    | _Batch
    | _Switch
    | _Staleness
    | _Evaluation
    | _End
    | _Repaired,
    Field(discriminator="kind"),
]
_LINE: TypeAdapter[Any] = TypeAdapter(_AnyLine)


def check_line(line: Mapping[str, Any]) -> None:
    """Refuse a line that no run writes.

    Raises:
        ValueError: With the first field that is wrong.

    >>> check_line({"kind": "update", "update": 1, "samples": "x", "loss": 0.5, "lr": 0.1, "global_batch": 32})
    Traceback (most recent call last):
    ValueError: update.samples = 'x': input should be a valid integer
    """
    try:
        _LINE.validate_python(line)
    except ValidationError as error:
        if error.errors()[0]["type"] in ("union_tag_invalid", "union_tag_not_found"):
            raise ValueError(f"kind = {line.get('kind')!r:.60}: is not known") from None
        raise ValueError(first_mistake(error)) from None


def read_record_lines(path: Path) -> Lines:
    """A run's record, sorted into what can be read and what was damaged; no lines where there is no file.

    Raises:
        InputError: If the file is there and can't be read.
    """
    return read_lines(path, check_line, together=out_of_order)


def out_of_order(lines: Sequence[Line]) -> list[Damage]:
    """Lines whose update or samples can't be right where they stand, as a changed digit or a doubled part of the file makes them.

    Lines of one kind go up; what is left are the most lines that do.

    >>> at = [Line(i, {"kind": "update", "update": update, "samples": 10 * update}) for i, update in enumerate([1, 2, 903, 4, 4, 5])]
    >>> out_of_order(at)
    [Damage(number=2, why='update 903 is out of order'), Damage(number=4, why='update 4 is out of order')]
    """
    starts = [line for line in lines if line.value["kind"] == "start"]
    wrong = [Damage(line.number, "a second start") for line in starts[1:]]
    kinds: dict[tuple[str, Any], list[Line]] = {}
    for line in lines:
        if "update" in line.value:
            kinds.setdefault((line.value["kind"], line.value.get("split")), []).append(line)
    for (kind, _), of_kind in kinds.items():
        bisect = bisect_left if kind in ("update", "lost") else bisect_right  # these once an update, others may be repeated
        for name in ("update", "samples"):
            kept = set(_longest_rise([line.value[name] for line in of_kind], bisect))
            wrong += [Damage(n, f"{name} {line.value[name]} is out of order") for i, (n, line) in _numbered(of_kind) if i not in kept]
            of_kind = [line for i, line in enumerate(of_kind) if i in kept]
    return wrong


def _numbered(lines: Sequence[Line]) -> Iterable[tuple[int, tuple[int, Line]]]:
    return ((i, (line.number, line)) for i, line in enumerate(lines))


def _longest_rise(values: Sequence[int], bisect: Callable[[list[int], int], int]) -> list[int]:
    """Positions of the longest rising selection of values, of equals the earlier; by patience sorting."""
    if all(a < b for a, b in itertools.pairwise(values)):
        return list(range(len(values)))
    tops: list[int] = []
    last: list[int] = []  # position of the end of the selection of each length
    before: list[int] = []
    for i, value in enumerate(values):
        length = bisect(tops, value)
        before.append(last[length - 1] if length else -1)
        if length == len(tops):
            tops.append(value)
            last.append(i)
        elif value < tops[length]:
            tops[length], last[length] = value, i
    chosen = []
    i = last[-1] if last else -1
    while i >= 0:
        chosen.append(i)
        i = before[i]
    return chosen[::-1]


def missing_updates(lines: Iterable[Mapping[str, Any]], updates: int) -> list[list[int]]:
    """First and last of each row of updates, up to so many, that the record has no line of and has not been told about.

    >>> missing_updates([{"kind": "update", "update": i} for i in (1, 2, 5)], 6)
    [[3, 4], [6, 6]]
    """
    there = {0, updates + 1}
    for line in lines:
        if line["kind"] in ("update", "lost"):
            there.add(line["update"])
        elif line["kind"] == "repaired":
            there.update(i for first, last in line["missing"] for i in range(first, min(last, updates) + 1))
    present = sorted(i for i in there if i <= updates + 1)
    return [[a + 1, b - 1] for a, b in itertools.pairwise(present) if b > a + 1]


def read_record(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's record that can be read; a warning says what can't. A line that a killed run left unfinished is dropped.

    Raises:
        InputError: If the file is there and can't be read.
    """
    lines = read_record_lines(path)
    if lines.damaged:
        warnings.warn(f"{path}: {lines.loss()}", stacklevel=2)
    return lines.values
