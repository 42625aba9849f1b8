"""Many runs: one after another here, or several at once; a run that fails ends no other."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
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
    pool: Pool, runner: Runner, jobs: Sequence[Job], say: Say | None = None, *, done: Callable[[int, Result], None] | None = None
) -> list[Result]:
    """Make all runs.

    Args:
        pool: Makes them.
        runner: Runs the recipes.
        jobs: The runs.
        say: Called with lines of text: before each run, and, of several, after each that took a while.
        done: Called with the number of a job and its result as it comes, in whichever order.

    Returns:
        The results, in the order of the jobs.

    Raises:
        RunFailed: After the last run, if some failed: with the first one's words, and how many there are.
        Interrupted: When asked to stop.
    """
    results: dict[int, Result] = {}
    failures: dict[int, RunFailed] = {}
    to_make, began = {number for number, job in enumerate(jobs) if not job.is_finished}, time.monotonic()
    made = 0
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
            made += number in to_make
            if say is not None and 0 < made < len(to_make) and (seconds := time.monotonic() - began) > 5:
                say(f"{made} of {len(to_make)} runs done, about {_duration(seconds / made * (len(to_make) - made))} left")
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
