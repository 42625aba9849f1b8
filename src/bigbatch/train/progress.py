"""What a person sees while a run runs: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0


class Display(AbstractContextManager["Display"]):
    """Progress of one run, in samples.

    Args:
        title: What runs.
        total_samples: Where it ends.
        start_samples: Where it (re)starts.
        num_train_samples: Samples in an epoch.
        quiet: Show nothing.
    """

    def __init__(self, title: str, *, total_samples: int, start_samples: int, num_train_samples: int, quiet: bool) -> None:
        self.title, self.total, self.start, self.epoch = title, total_samples, start_samples, num_train_samples
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._began = self._last_line = time.monotonic()
        self._score = ""
        if not quiet and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                refresh_per_second=4,
                transient=True,
            )
            self._id = self._bar.add_task(title, total=total_samples, completed=start_samples, text="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, samples: int, *, loss: float, score: str | None = None) -> None:
        """Show where the run stands; `score` is kept until the next one."""
        if self._quiet:
            return
        self._score = score or self._score
        elapsed = time.monotonic() - self._began
        rate = (samples - self.start) / elapsed if elapsed > 0 else 0.0
        text = f"epoch {samples / self.epoch:.1f}/{self.total / self.epoch:g}  loss {loss:.4f}  {self._score}  {rate:,.0f} samples/s"
        if self._bar is not None:
            self._bar.update(self._id, completed=samples, text=text)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S or samples >= self.total:
            self._last_line = time.monotonic()
            left = (self.total - samples) / rate if rate else 0.0
            print(f"{self.title}  {text}  {left:.0f} s left", file=sys.stderr, flush=True)
