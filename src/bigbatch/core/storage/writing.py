"""Writing files so that a crash, a full disk or a kill leaves the old file or the new one, never half of one."""

import contextlib
import errno
import itertools
import os
import tempfile
from pathlib import Path

from bigbatch.core.checks import OutputError
from bigbatch.core.environment import how_to_go_on


def make_folder(path: Path, *, option: str = "--out") -> Path:
    """Create `path` and prove that it can be written.

    Args:
        path: Of the folder.
        option: By which another one is given.

    Raises:
        OutputError: If it can't be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(f"output folder {path}: {error.strerror}; choose a folder that you can write with {option}") from error
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises:
        OutputError: If the disk is full or the folder is not writable; an earlier `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "the earlier file is intact" if os.path.lexists(path) else "nothing was written"
        raise OutputError(f"can't write {path} ({len(content):,} bytes): {error.strerror}; {kept}; {remedy_for(error)}") from error


def remedy_for(error: OSError) -> str:
    """What a person can do about a file that can't be written, in words."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{'free some space' if full else 'make it writable'}, then {how_to_go_on()}"


def sync_folder(path: Path) -> None:
    """Put on the disk which files a folder has."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def keep_damaged(path: Path) -> Path:
    """Copy a damaged file to the next free name beside it, such as `record.jsonl.damaged-1`.

    Returns:
        The copy.

    Raises:
        OutputError: If it can't be written.
    """
    copy = next(place for i in itertools.count(1) if not (place := path.with_name(f"{path.name}.damaged-{i}")).exists())
    write_atomically(copy, path.read_bytes())
    return copy


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed run left behind."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
