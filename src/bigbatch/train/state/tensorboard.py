"""TensorBoard events, beside the record: a view for people, which never ends a run."""

import contextlib
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bigbatch.core.extras import MissingExtra, needed
from bigbatch.core.storage.reading import reason


def events_into(folder: Path, updates: int, *, wanted: bool | None) -> "Events | None":
    """Begin to write, as `Events` does.

    Args:
        folder: As there.
        updates: As there.
        wanted: None where TensorBoard is installed.

    Raises:
        MissingExtra: If it is wanted, and not installed.
    """
    if wanted is False:
        return None
    try:
        return Events(folder, updates)
    except MissingExtra:
        if wanted:
            raise
        return None


class Events:
    """Writes scalars as TensorBoard reads them; where that fails, warns once and goes on without.

    They are written by the thread that calls. torch's SummaryWriter has a thread of its own, whose failures end a program later and
    elsewhere, with a traceback.

    Args:
        folder: Made if need be.
        updates: Where the run (re)starts: TensorBoard drops what an earlier attempt wrote later.

    Raises:
        MissingExtra: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path, updates: int) -> None:
        with needed("a TensorBoard file", extra="tensorboard"):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary

        self._folder, self._event, self._scalar, self._hparams = folder, Event, summary.scalar, summary.hparams
        self._file = None
        seconds, fraction = divmod(time.time_ns(), 10**9)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"events.out.tfevents.{seconds:010}.{fraction:09}").open("xb")
        except OSError as error:
            self._give_up(error)
            return
        self._writer = RecordWriter(self._file)
        begins = updates + 1 if updates else 0  # TensorBoard drops earlier values from this step on
        self._write(step=begins, file_version="brain.Event:2")
        self._write(step=begins, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, updates: int) -> None:
        """One value after so many updates."""
        self._write(step=updates, summary=self._scalar(name, value))  # type: ignore[no-untyped-call]

    def add_hparams(self, values: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Show values by name in TensorBoard's HPARAMS tab, beside the scalars that `metrics` names.

        Args:
            values: Numbers, truth values and texts as they are; None is left out, and what else there is as its text.
            metrics: Tags of scalars.
        """
        plain = {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in values.items() if v is not None}
        for part in self._hparams(plain, dict.fromkeys(metrics, 0)):  # type: ignore[no-untyped-call]
            self._write(step=0, summary=part)

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, **fields: object) -> None:
        if self._file is not None:
            try:
                self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # it tries once more to write what it could not
                file.close()
        warnings.warn(f"{self._folder}: can't write TensorBoard's events: {reason(error)}; the run goes on without them", stacklevel=2)
