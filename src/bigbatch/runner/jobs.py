"""Many runs: one after another here, or several at once; a run that fails ends no other."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from bigbatch.core.checks import RunFailed
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import Request, Runner
from bigbatch.train.state.result import Result

Say = Callable[[str], None]
ALL_FAIL = 3
"""So many runs that fail, before any succeeds, end a study: the next would fail too."""


Outcomes = Generator[tuple[int, Result | RunFailed], None, None]
"""Results as they come, each with the number of its job."""


SAID_AFTER_S = 5.0
"""Seconds from which on the time left is said."""


@dataclass
class Whole:
    """How far a study is, over all its runs.

    Attributes:
        expected: Runs that it will take, as far as is known.
        done: Runs that are done, whether they were made or found finished.
        made: Those that were made.
        seconds: In which they were made.
    """

    expected: int
    done: int = 0
    made: int = 0
    seconds: float = 0.0

    def found(self, runs: int = 1) -> None:
        """So many were found finished."""
        self.done += runs
        self.expected = max(self.expected, self.done)

    def add(self, seconds: float) -> None:
        """One more was made, so many seconds after the one before."""
        self.made += 1
        self.seconds += seconds
        self.found()

    def in_words(self, what: str = "runs") -> str:
        """How far it is, and how long it will take; empty if it is at its end, or has taken only seconds.

        >>> Whole(expected=10, done=4, made=2, seconds=60.0).in_words()
        '4 of 10 runs done, about 3 min left'
        """
        if self.made == 0 or self.done >= self.expected or self.seconds <= SAID_AFTER_S:
            return ""
        left = self.seconds / self.made * (self.expected - self.done)
        return f"{self.done} of {self.expected} {what} done, about {_duration(left)} left"


class Job(NamedTuple):
    """One run to be made."""

    recipe: Recipe
    request: Request
    opening: str = ""  # said before it begins; the request's title if left out

    @property
    def is_finished(self) -> bool:
        """Whether its folder holds a result."""
        return self.request.out is not None and (self.request.out / "result.json").exists()


class Pool(Protocol):
    """Makes runs, as a context manager."""

    def __enter__(self) -> Self:
        """Begin; what a pool needs is made when it is needed."""
        ...

    def __exit__(self, *_: object) -> None:
        """End what it holds."""
        ...

    def results(self, runner: Runner, jobs: Sequence[Job], say: Say) -> Outcomes:
        """The runs' results as they end, each with the number of its job.

        Args:
            runner: Runs the recipes.
            jobs: The runs.
            say: Called with a line of text before each run.

        Raises:
            Interrupted: When asked to stop; runs that had begun have ended by then.
        """
        ...


class OneAfterAnother(AbstractContextManager["OneAfterAnother"]):
    """Makes runs in this process, in order."""

    def __exit__(self, *_: object) -> None:
        pass

    def results(self, runner: Runner, jobs: Sequence[Job], say: Say) -> Outcomes:
        """As `Pool.results`."""
        for number, job in enumerate(jobs):
            say(opening(job))
            try:
                yield number, runner.run(job.recipe, job.request)
            except RunFailed as error:
                yield number, error


def opening(job: Job) -> str:
    """What is said before a run."""
    return (job.opening or job.request.title) + (", found finished" if job.is_finished else "")


def run_jobs(
    pool: Pool,
    runner: Runner,
    jobs: Sequence[Job],
    say: Say | None = None,
    *,
    done: Callable[[int, Result], None] | None = None,
    whole: Whole | None = None,
) -> list[Result]:
    """Make all runs.

    Args:
        pool: Makes them.
        runner: Runs the recipes.
        jobs: The runs.
        say: Called with lines of text: before each run, and, of several, after each that took a while.
        done: Called with the number of a job and its result as it comes, in whichever order.
        whole: How far the study is that these runs are part of; they are all of it if left out.

    Returns:
        The results, in the order of the jobs.

    Raises:
        RunFailed: After the last run, if some failed: with the first one's words, and how many there are.
        Interrupted: When asked to stop.
    """
    results: dict[int, Result] = {}
    failures: dict[int, RunFailed] = {}
    to_make = {number for number, job in enumerate(jobs) if not job.is_finished}
    whole, last = whole or Whole(expected=len(jobs)), time.monotonic()
    with closing(pool.results(runner, jobs, say or (lambda _: None))) as outcomes:
        for number, outcome in outcomes:
            if isinstance(outcome, RunFailed):
                failures[number] = outcome
            else:
                results[number] = outcome
                if done is not None:
                    done(number, outcome)
            if len(failures) == ALL_FAIL and not results:
                break
            if number in to_make:
                whole.add((now := time.monotonic()) - last)
                last = now
                if say is not None and (text := whole.in_words()):
                    say(text)
            else:
                whole.found()
    if failures:
        left = len(jobs) - len(failures) - len(results)
        first = failures[min(failures)]
        others = f"; {len(failures) - 1} other runs failed too" if len(failures) > 1 else ""
        others += f", and the {left} left were not begun" if left else ""
        raise RunFailed(f"{first}{others}; the same call makes failed runs again, and takes the {len(results)} finished ones as they are")
    return [results[number] for number in range(len(jobs))]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
