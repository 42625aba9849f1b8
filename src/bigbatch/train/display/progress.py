"""What a person sees while a run runs: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

BAR_EVERY_S, LINE_EVERY_S = 0.25, 5.0
FIRST_LINE_S = 1.0
"""Before the first of the lines: a person wants to see early that a run runs."""


def _bar(*texts: str) -> "Progress | None":
    """A bar with texts behind it, the time left after the first of them; None where there is no terminal, or no rich to draw on one."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column
    except ImportError:
        return None
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    bar = BarColumn(bar_width=_bar_width(console.width))
    first, *rest = (TextColumn(text, table_column=Column(no_wrap=True)) for text in texts)
    columns = (TextColumn("{task.description}", table_column=Column(no_wrap=True)), bar, first, TimeRemainingColumn(compact=True), *rest)
    return Progress(*columns, console=console, refresh_per_second=4, transient=True)


def _bar_width(width: int) -> int:
    return 24 if width >= 100 else 12


def shortened(text: str, width: int) -> str:
    """A text that is no longer than so many characters.

    >>> shortened("a long title", 8)
    'a long …'
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"


def that_fit(parts: Sequence[str], width: int) -> str:
    """The first of the parts, as many as fit, with two spaces between; empty parts are left out.

    >>> that_fit(["loss 0.5", "", "epoch 1/2", "10 samples/s"], 20)
    'loss 0.5  epoch 1/2'
    """
    text = ""
    for part in filter(None, parts):
        longer = f"{text}  {part}" if text else part
        if len(longer) > width:
            break
        text = longer
    return text


class _WithBar:
    """Shows a bar while it lasts, where there is a terminal for one.

    Args:
        texts: Behind the bar.
        quiet: Show nothing.
    """

    def __init__(self, *texts: str, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = None if quiet else _bar(*texts)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()


class Display(_WithBar):
    """Progress of one run, in samples.

    Args:
        title: What runs.
        total: Samples at which it ends.
        start: Samples at which it (re)starts.
        epoch: Samples in an epoch.
        quiet: Show nothing.
    """

    def __init__(self, title: str, *, total: int, start: int, epoch: int, quiet: bool) -> None:
        super().__init__("{task.percentage:>3.0f} %", "{task.fields[text]}", quiet=quiet)
        self.title, self.total, self.start, self.epoch = title, total, start, epoch
        self._began = time.monotonic()
        self._next = self._began + FIRST_LINE_S * (self._bar is None)
        self._score = ""
        if self._bar is not None:
            self._id = self._bar.add_task(shortened(title, self._bar.console.width // 3), total=total, completed=start, text="")

    def show_score(self, score: str) -> None:
        """Keep the newest score for display."""
        self._score = score

    def batch_changed(self, before: int, after: int, reason: str) -> None:
        """Say that the batch changes, and why."""
        self.print_line(f"batch {before:,} to {after:,}: {reason}")

    def print_line(self, text: str) -> None:
        """A line of its own; nothing for an empty one."""
        if text and not self._quiet:
            if self._bar is not None:
                self._bar.console.print(f"{self.title}  {text}", highlight=False)
            else:
                print(f"{self.title}  {text}", file=sys.stderr, flush=True)

    def update(self, samples: int, *, loss: float) -> None:
        """Show where the run stands, not more often than a person can read."""
        now = time.monotonic()
        if self._quiet or (now < self._next and samples < self.total):
            return
        rate = (samples - self.start) / max(now - self._began, 1e-9)
        epoch, speed = f"epoch {samples / self.epoch:.1f}/{self.total / self.epoch:g}", f"{rate:,.0f} samples/s"
        if self._bar is not None:
            text = that_fit(["" if math.isnan(loss) else f"loss {loss:.4f}", self._score, epoch, speed], self._room(self._bar))
            self._bar.update(self._id, completed=samples, text=text)
            self._next = now + BAR_EVERY_S
        else:
            text = f"{epoch}  loss {loss:.4f}  {self._score}  {speed}"
            print(f"{self.title}  {text}  {(self.total - samples) / rate:.0f} s left", file=sys.stderr, flush=True)
            self._next = now + LINE_EVERY_S

    @staticmethod
    def _room(bar: "Progress") -> int:
        """Characters behind the title, the bar, the percentage and the time left."""
        width = bar.console.width
        return width - min(len(bar.tasks[0].description), width // 3) - _bar_width(width) - len("100 %") - len("0:00:00") - 4


class Stages(_WithBar):
    """Progress of a measurement that takes minutes, in stages that are gone through one after the other.

    Args:
        title: What is measured.
        total: Number of stages.
        quiet: Show nothing.
    """

    def __init__(self, title: str, *, total: int, quiet: bool) -> None:
        super().__init__("{task.fields[text]}", quiet=quiet)
        self.title, self.total, self.number = title, total, 0

    def stage(self, name: str) -> Callable[[int, int | None], None]:
        """The next stage begins.

        Args:
            name: What it measures.

        Returns:
            Takes what is done of it, and of how much, where that is known.
        """
        self.number += 1
        began = time.monotonic()
        text = f"{self.title}  {self.number}/{self.total}  {name}"
        if self._bar is not None:
            for done in self._bar.task_ids:
                self._bar.remove_task(done)
            bar = self._bar
            width = bar.console.width
            shown = bar.add_task(shortened(text, width - _bar_width(width) - 21), total=None, text="")
            return lambda done, total: bar.update(shown, completed=done, total=total, text=f"{done}/{total}" if total else f"{done}")
        if self._quiet:
            return lambda done, total: None  # noqa: ARG005
        print(text, file=sys.stderr, flush=True)
        last = began

        def line(done: int, total: int | None) -> None:
            nonlocal last
            now = time.monotonic()
            if done and now - last >= LINE_EVERY_S:
                last = now
                left = f" of {total}, {(total - done) * (now - began) / done:.0f} s left" if total else ""
                print(f"{text}  {done}{left}", file=sys.stderr, flush=True)

        return line
