"""Where a command's scores are read: from what it prints, from a JSON file, or from TensorBoard's events.

Of all, what counts for the score is the last value, and for a curve every one.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from bigbatch.core.checks import RunFailed, UserError, unknown
from bigbatch.core.extras import needed

UNITS = ("updates", "samples", "epochs")
GROUPS = ("score", "loss", *UNITS, "epoch", "epoch0")
"""Names of groups that a pattern may have."""
THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")
BEFORE, BEHIND = re.compile(r"(?:[\d.]|(?:^|[\s=:(])-)$"), re.compile(r"[\d]|[.]\d|[eE][-+]?\d")
"""Where a number goes on, before and behind what a group has taken of it; a comma behind is looked at for numbers without a point."""


class Reading(NamedTuple):
    """One value that a run told, and where it stood."""

    value: float
    position: dict[str, float]  # one of `UNITS`, if it is known
    loss: float | None = None


class ScoreSource(Protocol):
    """Gives the values of one run, in order; a source belongs to one run."""

    def on_line(self, line: str) -> None:
        """Take a line of standard output."""
        ...

    def news(self) -> list[Reading]:
        """What came since the last call."""
        ...

    @property
    def what(self) -> str:
        """For messages: where it looks."""
        ...


class Pattern:
    """Values in the lines of standard output that match a regular expression.

    Its first group without a name, or the one named `score`, is the value; groups named `updates`, `samples` or `epochs` (finished; `epoch`
    is the same, `epoch0` counts from 0) say where the run stood, and `loss` is the training loss.
    """

    def __init__(self, pattern: "re.Pattern[str]") -> None:
        self._pattern, self._news = pattern, list[Reading]()
        named = set(pattern.groupindex.values())
        self._group = pattern.groupindex.get("score") or next((i for i in range(1, pattern.groups + 1) if i not in named), None)

    @property
    def what(self) -> str:
        """For messages."""
        return f"standard output ({self._pattern.pattern!r})"

    def on_line(self, line: str) -> None:
        """As `ScoreSource.on_line`."""
        for match in self._pattern.finditer(line):
            named = {name: value for name, value in match.groupdict().items() if value is not None}
            if self._group is None or (text := match.group(self._group)) is None:
                continue
            self._check_whole(match, self._group)
            position = {name: _number(named[name], self.what) for name in UNITS if name in named}
            if "epoch" in named or "epoch0" in named:
                position = {"epochs": _number(named["epoch"], self.what) if "epoch" in named else 1 + _number(named["epoch0"], self.what)}
            loss = _number(named["loss"], self.what) if "loss" in named else None
            self._news.append(Reading(_number(text, self.what), position, loss))

    def _check_whole(self, match: "re.Match[str]", group: int) -> None:
        """Refuse a part of a number: 9.63 of 9.63e-03 looks like a score."""
        line, (start, end), text = match.string, match.span(group), match.group(group)
        behind = BEHIND.match(line, end) or ("." not in text and re.compile(r",\d").match(line, end))
        if (text[-1:].isdigit() and behind) or (text[:1].isdigit() and BEFORE.search(line, 0, start)):
            whole = line[len(line[:start].rstrip("+-.,0123456789eE")) :].split()[0][:60]
            raise RunFailed(f"score {text!r:.60}: is a part of {whole!r}, found in {self.what}; write the group as ([-+0-9.eE]+)")

    def news(self) -> list[Reading]:
        """As `ScoreSource.news`."""
        taken = self._news[:]
        del self._news[: len(taken)]
        return taken


class JSONFile:
    """Values under a key, dots going deeper, of a JSON file, or of each line of a file of JSON lines that has it.

    A file that is there already, of an attempt before, says nothing until it is written anew or grows.
    """

    def __init__(self, path: Path, key: str, *, position: dict[str, str]) -> None:
        self._path, self._key, self._position, self._seen = path, key, position, 0
        self._stamp = self._stamp_now()

    @property
    def what(self) -> str:
        """For messages."""
        return f"{self._path} (key {self._key!r})"

    def on_line(self, line: str) -> None:
        """Nothing of it is in the output."""

    def news(self) -> list[Reading]:
        """As `ScoreSource.news`."""
        try:
            if (stamp := self._stamp_now()) == self._stamp:
                return []
            text = self._path.read_text("utf-8", "replace")
        except OSError:  # not yet
            return []
        self._stamp = stamp
        found = [reading for value in _values(text) if (reading := self._reading(value)) is not None]
        news = found[self._seen :] if len(found) >= self._seen else found  # it may have been begun anew
        self._seen = len(found)
        return news

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    def _reading(self, value: Any) -> Reading | None:
        number = _at(value, self._key)
        if number is None:
            return None
        position = {unit: float(v) for unit, key in self._position.items() if (v := _at(value, key)) is not None}
        if self._position and not position:
            keys = ", ".join(map(repr, self._position.values()))
            raise RunFailed(
                f"curve in {self._path}: beside {self._key!r} there is no {keys}, which says where the run stood; correct its key"
            )
        return Reading(float(number), position)


class TensorBoard:
    """Values of one tag in the events below a folder; steps are updates."""

    def __init__(self, folder: Path, tag: str, *, unit: str) -> None:
        self._folder, self._tag, self._unit, self._seen = folder, tag, unit, 0
        self._events: dict[Path, Any] = {}  # which read on where they were
        with needed("a score in TensorBoard's events", extra="tensorboard"):
            import tensorboard.backend.event_processing.event_accumulator  # noqa: F401

    @property
    def what(self) -> str:
        """For messages."""
        return f"TensorBoard's events below {self._folder} (tag {self._tag!r})"

    def on_line(self, line: str) -> None:
        """Nothing of it is in the output."""

    def news(self) -> list[Reading]:
        """As `ScoreSource.news`."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found: list[Reading] = []
        for place in sorted({path.parent for path in self._folder.rglob("events.out.tfevents.*")}):
            if (events := self._events.get(place)) is None:
                events = self._events[place] = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
            events.Reload()
            if self._tag in events.Tags()["scalars"]:
                found += [Reading(event.value, {self._unit: float(event.step)}) for event in events.Scalars(self._tag)]
            elif self._tag in events.Tags()["tensors"]:
                from tensorboard.util.tensor_util import make_ndarray

                found += [Reading(float(make_ndarray(e.tensor_proto)), {self._unit: float(e.step)}) for e in events.Tensors(self._tag)]
        found.sort(key=lambda reading: reading.position[self._unit])
        news, self._seen = found[self._seen :], max(self._seen, len(found))
        return news


def compiled(pattern: str, *, what: str = "score pattern") -> "re.Pattern[str]":
    """A regular expression, and of a score with a group for the value.

    Raises:
        UserError: If it is none, or has no group.
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{what} {pattern!r}: is no regular expression: {error}") from None
    if what == "score pattern":
        _check_groups(found)
    return found


def _check_groups(pattern: "re.Pattern[str]") -> None:
    if not pattern.groups:
        raise UserError(f"score pattern {pattern.pattern!r}: has no group; put the number in one, such as 'test_acc ([-+0-9.eE]+)'")
    if strange := [name for name in pattern.groupindex if name not in GROUPS]:
        raise UserError(f"score pattern {pattern.pattern!r}: {unknown('group', strange[0], GROUPS)}")
    if "score" not in pattern.groupindex and pattern.groups == len(pattern.groupindex):
        raise UserError(f"score pattern {pattern.pattern!r}: no group is the score; name one so, such as (?P<score>[-+0-9.eE]+)")


def _number(text: str, what: str) -> float:
    bare = text.strip().rstrip("%").strip()
    try:
        return float(bare.replace(",", "") if THOUSANDS.fullmatch(bare) else bare)
    except ValueError:
        raise RunFailed(f"score {text!r:.60}: found in {what}, and is no number; correct the pattern's group") from None


def _values(text: str) -> Iterator[Any]:
    """The one value of a JSON file, or that of each whole line."""
    try:
        yield json.loads(text)
        return
    except ValueError:
        pass
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # half written
            continue


def _at(value: Any, key: str) -> float | None:
    """The number under a dotted key; None where there is none. A key that has dots itself is found too."""
    if isinstance(value, list):
        value = value[-1] if value else None
    if isinstance(value, dict) and key in value:
        found = value[key]
        if found is None or isinstance(found, str):
            return math.nan if found is None or found.lower().strip("-+") in ("nan", "inf", "infinity") else None
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    head, dot, rest = key.partition(".")
    return _at(value[head], rest) if dot and isinstance(value, dict) and head in value else None
