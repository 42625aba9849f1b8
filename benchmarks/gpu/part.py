"""One part of `make gpu`: its settings, the time that it has left, and its file of results, which is written after every row.

A part that is started again skips the rows that its file has from the same commit and device.
"""

import argparse
import json
import os
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch


class Part:
    """What a part's script is given.

    Attributes:
        device: Where to measure.
        quick: Small shapes and few rounds: a dry run.
        seconds: That the part has.
        data: Folder of data files that were carried along, or None.
        rows: Results so far.
        finished: What was measured whole, by `about`.
    """

    def __init__(self, name):
        parser = argparse.ArgumentParser()
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--quick", action="store_true")
        parser.add_argument("--seconds", type=float, default=600.0)
        parser.add_argument("--file", type=Path, required=True)
        parser.add_argument("--facts", type=json.loads, default={})
        parser.add_argument("--data", type=Path)
        given = parser.parse_args()
        self.name, self.device, self.quick, self.data = name, torch.device(given.device), given.quick, given.data
        self._began, self.seconds, self._file, self.facts = time.monotonic(), given.seconds, given.file, given.facts
        stored = read_part(given.file)
        stored = stored if stored.get("facts") == given.facts else {}
        self.rows = [row for row in stored.get("rows", []) if not row.get("error")]
        self.finished = stored.get("finished", [])
        if self.device.type == "cuda":
            torch.cuda.init()

    def left(self):
        """Seconds left."""
        return self.seconds - (time.monotonic() - self._began)

    def row(self, what, value, unit="", *, goal=None, **more):
        """Add a result: `goal` is ("<=" or ">=", number), or None for a figure that only informs."""
        self.rows = [row for row in self.rows if row["what"] != what]
        self.rows.append({"what": what, "value": value, "unit": unit, "goal": goal, **more})
        self._write(complete=False)

    @contextmanager
    def about(self, what, *, least_s=0.0):
        """Measure something by itself: what it raises becomes a row, and the next thing follows.

        Yields:
            Whether to measure; not where the file has it already, or the time left is short.
        """
        if what in self.finished or self.left() < least_s:
            yield False
            return
        try:
            yield True
        except Exception as error:
            text = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            self.row(what, None, error=f"{type(error).__name__}: {text}"[:300])
            if self.device.type == "cuda" and isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
        else:
            self.finished.append(what)
            self._write(complete=False)

    def wait(self):
        """Until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def finish(self):
        """All was measured."""
        self._write(complete=True)

    def _write(self, *, complete):
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".partial")
        head = {
            "part": self.name,
            "complete": complete,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "seconds": round(time.monotonic() - self._began, 1),
        }
        fresh.write_text(json.dumps({**head, "finished": self.finished, "facts": self.facts, "rows": self.rows}, indent=1) + "\n")
        os.replace(fresh, self._file)


def read_part(path):
    """What a part wrote so far; nothing where there is no such file, or a damaged one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def seconds_of(part, action, *, rounds, repeats=1):
    """Median seconds of an action: of `repeats` in a row, with one wait for the device at the end of each round."""
    action()
    action()
    part.wait()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(repeats):
            action()
        part.wait()
        times.append((time.perf_counter() - began) / repeats)
    return sorted(times)[len(times) // 2]


class Launched(NamedTuple):
    """What an action had the device do."""

    number: int  # kernels, copies and fills; of a CPU: operations
    seconds: float  # that they took, without the gaps between them


def launched_by(part, action, *, rounds=5):
    """What an action launches, by torch.profiler; seconds are the median of some rounds."""
    from torch.profiler import ProfilerActivity, profile

    action()
    part.wait()
    on_gpu = part.device.type == "cuda"
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    found = []
    for _ in range(1 if part.quick else rounds):
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
            action()
            part.wait()
        events = [event for event in seen.events() if event.device_type == kind and not getattr(event, "is_user_annotation", False)]
        found.append(Launched(len(events), sum(event.time_range.elapsed_us() for event in events) / 1e6))
    return sorted(found, key=lambda launched: launched.seconds)[len(found) // 2]
