"""Up to where a run is saved, and the command that goes on; read without torch, for a launcher that has only this to say."""

import pickletools
import shlex
import zipfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple


class Saved(NamedTuple):
    """The last checkpoint of a run.

    Attributes:
        out: The run's folder; None for a run that saves nothing.
        command: Words of the command that started it; none if they are not known.
    """

    out: Path | None
    command: Sequence[str] = ()

    def reached(self) -> int:
        """Grows with every checkpoint that is further on: its updates, or its time where they can't be told; -1 if there is none."""
        if self.out is None:
            return -1
        try:
            written = (self.out / "last.pt").stat().st_mtime_ns
        except OSError:  # also a name that is too long, which the run itself refuses with words
            return -1
        updates = last_update(self.out / "last.pt")
        return updates if updates is not None else written

    def in_words(self) -> str:
        """What is saved, and what to type.

        >>> Saved(None).in_words()
        'nothing was saved: no --out was given'
        """
        if self.out is None:
            return "nothing was saved: no --out was given"
        command = shlex.join(self.command)
        if self.reached() < 0:
            return "nothing was saved yet; " + (f"start again: {command}" if command else "start again")
        updates = last_update(self.out / "last.pt")
        resume = "" if "--resume" in self.command else " --resume"
        upto = f"saved up to update {updates:,} in {self.out}" if updates is not None else f"saved in {self.out}"
        return f"{upto}; go on with " + (f"{command}{resume}" if command else "--resume")


class SavedProgress(NamedTuple):
    """Where a run stood at a checkpoint."""

    samples: int
    updates: int
    train_s: float | None = None  # seconds in updates


def last_update(path: Path) -> int | None:
    """Updates that a checkpoint holds; None where it can't be told."""
    progress = saved_progress(path)
    return progress.updates if progress is not None else None


def saved_progress(path: Path) -> SavedProgress | None:
    """Where a run stood at a checkpoint; None where it can't be told.

    Only these numbers are looked for in the file's instructions: nothing is unpickled, and weights are not read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            values = ((op.name, value) for op, value, _ in pickletools.genops(archive.read(name)) if not op.name.endswith("PUT"))
            for operation in values:
                if operation == ("BINUNICODE", "progress"):  # [(samples, updates), micro-batch, best score, seconds, ...]
                    kinds, numbers = zip(*islice(values, 8), strict=True)
                    if kinds[:2] == ("EMPTY_LIST", "MARK") and kinds[4] == "TUPLE2":
                        train_s = float(numbers[7]) if kinds[6:] == ("BINFLOAT", "BINFLOAT") else None
                        return SavedProgress(int(numbers[2]), int(numbers[3]), train_s)
    except Exception:  # zipfile, zlib and pickletools raise a dozen unrelated kinds
        return None
    return None
