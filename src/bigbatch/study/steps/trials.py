"""The trials of one batch: run in brackets, with successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943).

A bracket of trials runs to a ninth of the longest run; the best third of these, by whether the target was reached and then by score, to a
third of it; and the best third of those to its end; at least `KEPT` each time. Each is begun anew: at a constant rate a longer run begins
as the shorter one. Trials left out count as stopped, as do those that need more than `SLACK` times the fewest updates so far.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigbatch.study.steps.storage import StoredTrials, Trial

BRACKET = 16
"""Trials that are halved together."""
FRACTIONS = (1 / 9, 1 / 3, 1.0)
KEPT = 4
"""Least number of trials of a bracket that go on, those at the target with them: the interval of the best is made of those next to it."""
SLACK = 1.5
"""Times the fewest updates so far: the longest that a trial may still take."""
MOST_ASKED = 3
"""Trials asked for, in units of those wanted, where most diverge."""
POLL_S = 1.0


class Outcome(NamedTuple):
    """What a run of a trial found."""

    updates: int
    reached: bool
    diverged: bool
    score: float | None  # best on validation data


@dataclass
class Bench:
    """What makes the trials of a batch.

    Attributes:
        run: Makes runs, each of values, a seed and the most updates.
        rank: Of a score; the best has the lowest.
        longest: Updates of the longest run.
        halves: Whether a shorter run is the beginning of a longer one, so that trials can be halved.
    """

    run: Callable[[Sequence[tuple[dict[str, Any], int, int]]], list[Outcome]]
    rank: Callable[[float | None], float]
    longest: int
    halves: bool


def run_trials(stored: StoredTrials, wanted: int, bench: Bench) -> list[Trial]:
    """Run trials until as many as wanted did not diverge, or `MOST_ASKED` times as many were made; those that are stored count."""
    while True:
        elsewhere, trials = stored.num_running(), stored.ended()
        feasible = sum(trial.outcome != "diverged" for trial in trials)
        left = MOST_ASKED * wanted - len(trials) - elsewhere
        number = min(wanted - feasible - elsewhere, left, BRACKET)
        if number > 0:
            longest = limit_of(trials, bench.longest) if bench.halves else bench.longest
            _run_bracket(stored, number, longest, bench)
        elif elsewhere and feasible < wanted:
            time.sleep(POLL_S)
        else:
            return trials


def expected_runs(wanted: int, *, halves: bool) -> int:
    """Runs that so many trials take, if none reaches the target before the last rung, and none diverges.

    >>> expected_runs(16, halves=True)
    26
    """
    if not halves:
        return wanted
    brackets = [min(BRACKET, wanted - start) for start in range(0, wanted, BRACKET)]
    return sum(
        number + sum(min(number, max(KEPT, math.ceil(number / 3**rung))) for rung in range(1, len(FRACTIONS))) for number in brackets
    )


def limit_of(trials: Sequence[Trial], longest: int) -> int:
    """The most updates that a further trial may take."""
    fewest = min((trial.updates for trial in trials if trial.outcome == "reached"), default=math.inf)
    return min(longest, math.ceil(SLACK * fewest)) if fewest < math.inf else longest


def _run_bracket(stored: StoredTrials, number: int, longest: int, bench: Bench) -> None:
    """Run so many further trials, and keep what came of each."""
    with stored.ask(number) as asked:
        alive, num_reached = list(asked), 0
        for rung, fraction in enumerate(FRACTIONS if bench.halves else FRACTIONS[-1:]):
            limit = max(1, math.ceil(fraction * longest))
            found = dict(zip(alive, bench.run([(dict(t.params), stored.seed_of(t), limit) for t in alive]), strict=True))
            reached = [trial for trial in alive if found[trial].reached]
            others = [trial for trial in alive if not (found[trial].reached or found[trial].diverged)]
            for trial in alive:
                if trial not in others:
                    stored.tell(trial, "diverged" if found[trial].diverged else "reached", found[trial].updates, found[trial].score)
            if bench.halves:
                longest = min([longest, *(math.ceil(SLACK * found[trial].updates) for trial in reached)])
            num_reached += len(reached)
            more = 0 if limit >= longest else max(0, math.ceil(number / 3 ** (rung + 1)) - num_reached, KEPT - num_reached)
            others.sort(key=lambda trial: bench.rank(found[trial].score))
            for trial in others[more:]:
                stored.tell(trial, "stopped", found[trial].updates, found[trial].score)
            alive = others[:more]
            if not alive:
                return
