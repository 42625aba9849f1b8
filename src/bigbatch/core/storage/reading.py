"""Reading files: whatever is wrong with one becomes one line with the file, what is wrong where, and what to do.

A file may have been cut, filled with zeros, edited by hand or written by another program. Limits keep what is read harmless to whatever
works on it later: 100 levels of nesting, whole numbers of 64 bits, no name twice in one object.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigbatch.core.checks import InputError

DEEPEST = 100
"""Levels of nesting; a recipe has 4, a study 8."""


class Malformed(ValueError):
    """Text is not what it should be; says what is wrong, and where."""


def exists(path: Path) -> bool:
    """Whether there is such a file or folder.

    Raises:
        InputError: If that can't be told: the name is too long, or a folder above may not be searched.
    """
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}; check the path") from None


def read_bytes(path: Path, remedy: str) -> bytes:
    """The content of a file.

    Args:
        path: The file.
        remedy: What to do where it can't be read.

    Raises:
        InputError: If it does not exist, is a folder, or may not be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"{path}: can't be read: {reason(error)}; {remedy}") from None


def read_text(path: Path, remedy: str) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: If it can't be read, or is no such text.
    """
    content = read_bytes(path, remedy)
    try:
        return decode(content)
    except Malformed as error:
        raise InputError(f"{path}: is damaged: {error}; {remedy}") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: If it can't be read, or holds anything else.
    """
    text = read_text(path, remedy)
    try:
        return parse_object(text)
    except Malformed as error:
        raise InputError(f"{path}: is damaged: {error}; {remedy}") from None


def decode(content: bytes) -> str:
    """Text of UTF-8, with or without a byte order mark.

    Raises:
        Malformed: If it is anything else.

    >>> decode(b"a = 1" + chr(10).encode() + bytes([255]))
    Traceback (most recent call last):
    bigbatch.core.storage.reading.Malformed: not UTF-8 (byte 0xff in line 2)
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Malformed(f"not UTF-8 (byte {error.object[error.start]:#04x} in line {line})") from None


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        Malformed: If it is not JSON, or another value.

    >>> parse_object("[1, 2]")
    Traceback (most recent call last):
    bigbatch.core.storage.reading.Malformed: holds a list where an object should be
    """
    if not text.strip():
        raise Malformed("empty")
    try:
        value = _JSON.decode(text)
    except RecursionError:
        raise Malformed(f"nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        raise Malformed(f"not JSON: {error.msg} ({line}column {error.colno})") from None
    except ValueError as error:
        raise Malformed(str(error)) from None
    if not isinstance(value, dict):
        raise Malformed(f"holds {_kind(value)} where an object should be")
    if text.count("[") + text.count("{") > DEEPEST:
        _check(value)
    if "\\u" in text:
        _check_characters(value)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table in a TOML text.

    Raises:
        Malformed: If it is not TOML.

    >>> parse_toml("lr = ")
    Traceback (most recent call last):
    bigbatch.core.storage.reading.Malformed: not TOML: Invalid value (at end of document)
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise Malformed(f"not TOML: nested deeper than {DEEPEST} levels") from None
    except tomllib.TOMLDecodeError as error:
        raise Malformed(f"not TOML: {error}") from None
    except ValueError:  # Python converts no longer one
        raise Malformed("not TOML: a number of more than 4,300 digits") from None
    _check(table)
    return table


def first_mistake(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: field, value, rule."""
    mistake = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in mistake["loc"] if not str(part).startswith("function-"))
    if mistake["type"] == "missing":
        return f"no {name}"
    return f"{name} = {mistake['input']!r:.60}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def reason(error: Exception) -> str:
    """What an error says, in one line, without the path that is told anyway."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()) or type(error).__name__


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**63:
        raise ValueError(f"a whole number of {len(digits):,} digits, 64 bits have 19")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


_JSON = json.JSONDecoder(parse_int=_whole_number, object_pairs_hook=_object)


def _check(value: Any, level: int = 0) -> None:
    """Refuse what is nested too deeply, and numbers that are too long."""
    if level > DEEPEST:
        raise Malformed(f"nested deeper than {DEEPEST} levels")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check(each, level + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Malformed("a whole number of more than 64 bits")


def _check_characters(value: Any) -> None:
    """Refuse halves of characters, which JSON can spell and no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"half a character ({error.object[error.start]!r})") from None


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null", bool: "a truth value"}.get(type(value), "a number")
