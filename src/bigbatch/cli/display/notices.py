"""How warnings leave the program."""

import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def warn_in_one_line() -> None:
    """Show warnings of ours as one line each, from now on."""
    warnings.showwarning = _show


def tell(text: str) -> None:
    """Say on standard error what goes on; on a terminal lines are wrapped at spaces."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    sys.stderr.write(f"{text}\n")


@contextmanager
def starting(text: str, *, quiet: bool) -> Iterator[None]:
    """Show on a terminal what begins, while the libraries are imported that it needs, which takes seconds; it vanishes then.

    Args:
        text: What begins.
        quiet: Show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own as one line that says what it says; others as Python does."""
    if issubclass(category, UserWarning) and "bigbatch" in Path(filename).parts:
        (file or sys.stderr).write(f"warning: {message}\n")  # one write: lines of several workers don't mix
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)
