"""Files of JSON lines, which grow while a run or a study goes on: what is damaged in one costs its own lines, not those after it."""

import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.checks import OutputError
from bigbatch.core.storage.reading import Malformed, exists, parse_object, read_bytes, reason
from bigbatch.core.storage.writing import keep_damaged, write_atomically

REMEDY = "check its permissions, or restore a copy"


class Line(NamedTuple):
    """One line that could be read."""

    number: int  # from 1
    value: dict[str, Any]


class Damage(NamedTuple):
    """One line that could not."""

    number: int  # from 1
    why: str


class Lines(NamedTuple):
    """A file."""

    good: list[Line]
    damaged: list[Damage]
    content: bytes
    cut: bool  # whether the last line was left unfinished, as a process that is killed leaves it

    @property
    def values(self) -> list[dict[str, Any]]:
        """What could be read."""
        return [line.value for line in self.good]

    def loss(self) -> str:
        """What was damaged, in words."""
        first = "; ".join(f"line {damage.number}: {damage.why}" for damage in self.damaged[:3])
        more = f"; and {len(self.damaged) - 3:,} more" if len(self.damaged) > 3 else ""
        count = f"{len(self.damaged):,} line{'s are' if len(self.damaged) > 1 else ' is'}"
        return f"{count} damaged ({first}{more}), {len(self.good):,} can be read"


def read_lines(
    path: Path, check: Callable[[dict[str, Any]], object], *, together: Callable[[Sequence[Line]], list[Damage]] | None = None
) -> Lines:
    """Every line that can be read; none where there is no file.

    Args:
        path: The file.
        check: Called with each line; a `ValueError`, `KeyError` or `TypeError` from it says that the line is damaged.
        together: Called with all good lines; says which of them can't be right beside the others.

    Raises:
        InputError: If the file is there and can't be read.
    """
    content = read_bytes(path, REMEDY) if exists(path) else b""
    good, damaged, cut = [], [], False
    texts = content.split(b"\n")
    for number, raw in enumerate(texts, start=1):
        text = raw.strip(b" \t\r")
        if not text:
            continue
        try:
            value = parse_object(text.decode())
            check(value)
            good.append(Line(number, value))
        except UnicodeDecodeError:
            damaged.append(Damage(number, "not UTF-8"))
        except Malformed as error:
            if number == len(texts) and text.startswith(b"{") and text.isascii() and b"\0" not in text:
                cut = True
            else:
                damaged.append(Damage(number, str(error)))
        except (ValueError, KeyError, TypeError) as error:
            damaged.append(Damage(number, f"no {error}" if isinstance(error, KeyError) else reason(error)))
    if together is not None:
        wrong = together(good)
        numbers = {damage.number for damage in wrong}
        good = [line for line in good if line.number not in numbers]
        damaged = sorted([*damaged, *wrong])
    return Lines(good, damaged, content, cut)


def repair(path: Path, lines: Lines) -> str | None:
    """Write the file anew with its good lines; where any is damaged, keep the file as it was beside it and warn.

    Returns:
        Name of what is kept, if anything.

    Raises:
        OutputError: If the disk is full; the file is as it was.
    """
    kept = None
    if lines.damaged:
        kept = keep_damaged(path)
        warnings.warn(f"{path}: {lines.loss()} and are kept; the file as it was is {kept.name}", stacklevel=2)
    text = "".join(json.dumps(value) + "\n" for value in lines.values).encode()
    if text != lines.content and (lines.damaged or lines.cut or not lines.content.endswith(b"\n")):
        write_atomically(path, text)
    return kept.name if kept is not None else None


def stored_lines(path: Path, check: Callable[[dict[str, Any]], object], *, writes: bool = True) -> list[dict[str, Any]]:
    """The lines of a study's file, which is repaired where it needs to be before more are appended.

    Args:
        path: The file; there may be none yet.
        check: As of `read_lines`.
        writes: Whether this process appends to it; others only read.

    Raises:
        UserError: If it can't be read, or repaired.
    """
    lines = read_lines(path, check)
    if writes and (lines.damaged or lines.cut or (lines.content and not lines.content.endswith(b"\n"))):
        repair(path, lines)
    return lines.values


def readable_lines(path: Path) -> list[dict[str, Any]]:
    """Every line that is JSON; a warning says what is not. Nothing is written.

    Raises:
        InputError: If the file is there and can't be read.
    """
    lines = read_lines(path, dict)
    if lines.damaged:
        warnings.warn(f"{path}: {lines.loss()}", stacklevel=2)
    return lines.values


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Add a line, whole or not at all.

    Raises:
        OutputError: If the disk is full; the lines before are as they were.
    """
    try:
        with path.open("ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            text = (json.dumps(value) + "\n").encode()
            try:
                written = file.write(text)
                if written < len(text):
                    file.write(text[written:])  # says why
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise OutputError(
            f"can't write {path}: {reason(error)}; its earlier lines are intact; free some space, then type the same command again"
        ) from error


def finite(value: Any) -> Any:
    """Plain values as JSON has them: None for a number that is not finite, lists for tuples.

    >>> finite({"loss": float("nan"), "batches": (1, float("inf"))})
    {'loss': None, 'batches': [1, None]}
    """
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
