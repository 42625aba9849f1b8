"""Values of options that take more than one word to check."""

from pathlib import Path
from typing import Any

import typer

from bigbatch.core.checks import InputError, UserError
from bigbatch.core.storage import reading


def read_noise_scale(path: Path | None) -> float | None:
    """The average in the JSON of `bigbatch noise`, samples; None without a file, or, with a word about it, where the file holds none.

    Raises:
        UserError: If the file can't be read.
    """
    if path is None:
        return None
    stored = read_json("--noise", path, "bigbatch noise --json")
    if stored.get("of", "all") != "all":
        typer.echo(f"{path}: is of the norm layers alone, and a plan compares with the whole model's; measure without --norms", err=True)
        return None
    average = stored.get("average")
    scale, words = (average.get("noise_scale"), average.get("words", "none")) if isinstance(average, dict) else (None, "none")
    if isinstance(scale, int | float) and 0 < scale < float("inf"):
        return float(scale)
    typer.echo(f"{path}: gives no noise scale to compare with ({words}); measure over more updates", err=True)
    return None


def whole_numbers(option: str, text: str) -> list[int]:
    """The numbers of "64,256,1024".

    Raises:
        UserError: If it is anything else.
    """
    try:
        return [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: must be whole numbers with commas between, such as 64,256,1024") from None


def numbers(option: str, text: str) -> list[float]:
    """The numbers of "0.5,1,2".

    Raises:
        UserError: If it is anything else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: must be numbers with commas between, such as 0.5,1,2") from None


def read_json(option: str, path: Path, writer: str) -> dict[str, Any]:
    """The object in a file that another command wrote.

    Raises:
        UserError: If the file can't be read, or holds something else.
    """
    try:
        return reading.read_json(path, f"give a file that `{writer}` wrote")
    except InputError as error:
        raise InputError(f"{option} {error}") from None
