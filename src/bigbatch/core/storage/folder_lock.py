"""One process at a time in a folder: a lock that ends with its process, and a record of who holds it.

The lock is the operating system's, on the file `.lock`: it ends with its process, however that ends, and NFS keeps it between hosts. A file
system that only pretends to do so is why `owner.json` says who holds the folder: what an owner on another host has left is not taken
over unless its scheduler has started the same job anew, or `--force` says that it has ended.
"""

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from bigbatch.core.checks import InputError, OutputError
from bigbatch.core.environment import FORCE, job_names, read_variable
from bigbatch.core.storage.reading import exists, first_mistake, read_json
from bigbatch.core.storage.writing import make_folder, write_atomically

OWNER = "owner.json"
UNKNOWN = "who held the folder before is not known"


class Owner(NamedTuple):
    """Who holds a folder."""

    host: str
    pid: int
    since: str  # date and time, UTC
    jobs: tuple[str, ...] = ()

    @classmethod
    def this_process(cls) -> "Owner":
        """This one, from now on."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(socket.gethostname(), os.getpid(), now, job_names())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class _Record(BaseModel):
    """An owner in a file."""

    host: StrictStr
    pid: StrictInt
    since: StrictStr
    jobs: tuple[StrictStr, ...]


@contextmanager
def owned(path: Path, *, wait_s: float = 15.0) -> Iterator[Path]:
    """Hold a folder from `with` to its end, for this process and thread alone.

    Args:
        path: The folder; created if it is missing.
        wait_s: How long to wait for an owner of the same job to end: a launcher may start a worker anew while the old one is being stopped.

    Returns:
        The folder.

    Raises:
        OutputError: At the start, if another process or thread holds it, or if an owner on another host has not given it back; with the
            owner's host, process number and start.
    """
    folder, here = make_folder(path), Owner.this_process()
    lock = FileLock(folder / ".lock")
    _acquire(lock, folder, here, wait_s)
    try:
        before = read_owner(folder)
        if before is not None and not _has_ended(before, here):
            raise OutputError(
                f"output folder {folder}: held by {before}, and not given back; whether that still runs can't be seen from {here.host}: "
                "if it has ended, take the folder over with --force, else choose another --out"
            )
        write_atomically(folder / OWNER, (json.dumps(here._asdict()) + "\n").encode())
        try:
            yield folder
        finally:
            with suppress(OSError):  # gone, or the file system can't be written any more: the lock decides then
                (folder / OWNER).unlink()
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, here: Owner, wait_s: float) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = read_owner(folder)
        if owner is not None and not _same_job(owner, here):
            raise _in_use(folder, owner) from None
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            raise _in_use(folder, read_owner(folder)) from None
    except OSError as error:
        raise OutputError(f"output folder {folder}: can't be locked ({error.strerror}); choose another --out") from error


def _has_ended(owner: Owner, here: Owner) -> bool:
    """Whether an owner whose lock is free has ended: known of a process of this host, believed of the same job, or said by the user."""
    return owner.host == here.host or _same_job(owner, here) or read_variable(FORCE, default=False)


def _same_job(owner: Owner, here: Owner) -> bool:
    return bool(set(owner.jobs) & set(here.jobs))


def read_owner(folder: Path) -> Owner | None:
    """Who holds a folder, or has held it and not given it back; None if nobody is known to.

    A record that can't be read is warned about and counts as none: the lock decides alone.
    """
    try:
        return _read_owner(folder)
    except InputError as error:
        warnings.warn(str(error), stacklevel=3)
        return None


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder now, as far as can be seen from here; nothing is written.

    An owner on another host counts until it has given the folder back.
    """
    try:
        owner = _read_owner(folder)
        if owner is None or (owner.host == socket.gethostname() and not _is_alive(owner.pid)):
            return False
        if owner.host != socket.gethostname():
            return True
    except InputError:  # the lock decides alone
        pass
    return _is_locked(folder / ".lock")


def _is_alive(pid: int) -> bool:
    """Whether a process of this host has this number, of whichever program."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _is_locked(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with FileLock(path).acquire(timeout=0):  # of an owner that has ended: free, and for this moment nobody can want it
            return False
    except (Timeout, OSError):
        return True


def _read_owner(folder: Path) -> Owner | None:
    path = folder / OWNER
    if not exists(path):
        return None
    try:
        return Owner(**_Record.model_validate(read_json(path, UNKNOWN)).model_dump())
    except ValidationError as error:
        raise InputError(f"{path}: is damaged: {first_mistake(error)}; {UNKNOWN}") from None


def _in_use(folder: Path, owner: Owner | None) -> OutputError:
    who = "another process" if owner is None else str(owner)
    return OutputError(f"output folder {folder}: is in use by {who}; wait for its end, or choose another --out")
