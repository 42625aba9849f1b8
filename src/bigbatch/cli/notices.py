"""How warnings leave the program."""

import sys
import warnings
from pathlib import Path
from typing import TextIO


def warn_in_one_line() -> None:
    """Show warnings of ours as one line each, from now on."""
    warnings.showwarning = _show


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
