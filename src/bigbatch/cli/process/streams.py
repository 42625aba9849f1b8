"""Standard output and standard error: what can't be written there, on a full disk or where a reader has ended, is the user's to mend."""

import io
import os
import sys
from typing import Any, TextIO

from bigbatch.core.checks import OutputError

NAMES = {1: "standard output", 2: "standard error"}


class _Stream(io.FileIO):
    """A standard stream whose errors say which it is."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """As `io.FileIO.write`.

        Raises:
            OutputError: If nothing can be written.
        """
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(_in_words(self.fileno(), error)) from error


def _in_words(descriptor: int, error: OSError) -> str:
    name = NAMES[descriptor]
    if isinstance(error, BrokenPipeError):
        return f"{name}: is closed ({error.strerror}); let its reader read to the end, or write to a file"
    return f"{name}: {error.strerror}; write to where there is space"


def check_streams() -> None:
    """From now on an error of a standard stream is an `OutputError`. A stream that is closed takes everything, and forgets it."""
    sys.stdout, sys.stderr = _checked(1, sys.stdout), _checked(2, sys.stderr)


def _checked(descriptor: int, stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w")
    stream.flush()
    raw = _Stream(descriptor, "w", closefd=False)
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered, stream.encoding, stream.errors, line_buffering=raw.isatty() or descriptor == 2, write_through=descriptor == 2
    )


def flush_streams() -> str:
    """Write what is left, at the end of the program.

    Returns:
        Why it can't be written; empty if it was.
    """
    why = ""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OutputError, OSError) as error:
            why = why or (_in_words(descriptor, error) if isinstance(error, OSError) else str(error))
            _let_go_of(descriptor)
    return why


def _let_go_of(descriptor: int) -> None:
    """The interpreter flushes once more when it ends, and complains; into nowhere it doesn't."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
