r"""Did accuracy hold? A paired test that goes on by seeds until it is decided, and what it can't know about rare bad runs.

Test:    of the differences d = candidate - reference of runs that share a seed (same initial weights, same order of the data), over
         finished pairs. Looks after `seeds` pairs and after each further one, to `max_seeds`.
         lost: t bound upper < -margin, error spent by Pocock's function; or the share of diverged runs surely above `bad_share`.
         held: lower > -margin, error spent by O'Brien and Fleming's; and Wilcoxon's signed-rank test of d > -margin agrees; and with
               the same confidence fewer than `bad_share` of runs are bad (Clopper and Pearson, at a level that holds over all looks).
         undecided: neither.
         A run is bad if it diverged, or scored more than the margin below every run of the reference.
Units:   those of `bigbatch.core.metric.Metric.comparable`, of which larger are better: points of accuracy; the margin is positive.
Choices: pairs, though they halve the degrees of freedom: with 14 pairs that costs 3 % in the width of the interval if seeds tell
         nothing, gains a third at a correlation of 0.6, and is right if they are correlated negatively, where Welch's is too sure.
         No "held" before `bad_share` can be excluded, 14 runs for a fifth: an arm with one run in five 3 points below is "held" by a test
         of the mean in a quarter of cases with 5 seeds and a tenth with 10, whatever the test, since most samples hold no bad run.
         Rarer bad runs than that stay possible, and the verdict says how rare.
         A spread is taken to be at least the resolution: scores of equal value are equal to one test sample only.
Limits:  the test set is one: all of this is about these test samples. `max_seeds` is fixed before the first run; raised after a look,
         the error grows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from bigbatch.core.checks import UserError, check_positive
from bigbatch.core.extras import needed
from bigbatch.study.comparison.group_sequential import Spending, levels, obrien_fleming, pocock, share_level
from bigbatch.study.comparison.noninferiority import Outcome, check_finite, floored_spread

with needed("the verdict of a study", extra="study"):
    from scipy import special, stats

SPENT = 0.85  # of the error, where there is more than one look (group_sequential.py)


class Rate(NamedTuple):
    """So many of so many runs, and what share of all runs that may be."""

    cases: int
    runs: int

    def at_most(self, confidence: float) -> float:
        """Upper bound, one-sided (Clopper and Pearson).

        >>> round(Rate(0, 14).at_most(0.95), 3)
        0.193
        """
        return 1.0 if self.cases == self.runs else float(special.betaincinv(self.cases + 1, self.runs - self.cases, confidence))

    def at_least(self, confidence: float) -> float:
        """Lower bound, one-sided."""
        return 0.0 if self.cases == 0 else float(special.betaincinv(self.cases, self.runs - self.cases + 1, 1 - confidence))

    def words(self, confidence: float) -> str:
        """Cases, share and a two-sided interval.

        >>> Rate(1, 14).words(0.95)
        '1 of 14 (7.14 %; 0.181 to 33.9 % at 95 %)'
        """
        side = (1 + confidence) / 2
        share, low, high = (f"{100 * value:.3g}" for value in (self.cases / self.runs, self.at_least(side), self.at_most(side)))
        return f"{self.cases} of {self.runs} ({share} %; {low} to {high} % at {100 * confidence:g} %)"


@dataclass(frozen=True)
class Design:
    """What is fixed before the first run.

    Attributes:
        margin: Largest loss that counts as none, as a difference of comparable scores: points of accuracy.
        seeds: Runs an arm before the first look.
        max_seeds: Runs an arm at most.
        bad_share: Share of runs that may be bad without calling it a loss; "held" is said once a larger one is excluded.
        confidence: Of each of the two claims over all looks, and of the bound on bad runs.
        resolution: Of a comparable score: one test sample; 0 where one can change it by any amount.

    Raises:
        UserError: If a value is out of range.
    """

    margin: float
    seeds: int = 3
    max_seeds: int = 14
    bad_share: float = 0.2
    confidence: float = 0.95
    resolution: float = 0.0

    def __post_init__(self) -> None:
        for name in ("margin", "seeds", "max_seeds"):
            check_positive(name, getattr(self, name))
        for name, usual in (("bad_share", 0.2), ("confidence", 0.95)):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: must lie between 0 and 1; {usual} is usual")
        if self.max_seeds < self.seeds:
            raise UserError(f"max_seeds = {self.max_seeds}: must be seeds = {self.seeds} or more; raise it")

    @property
    def least_runs(self) -> int:
        """Runs without a bad one that exclude `bad_share`.

        >>> Design(margin=0.5).least_runs, Design(margin=0.5, seeds=5, max_seeds=5, bad_share=0.5).least_runs
        (14, 5)
        """
        return math.ceil(math.log(1 - self.bad_confidence) / math.log(1 - self.bad_share) - 1e-9)

    @cached_property
    def bad_confidence(self) -> float:
        """Of the bound on bad runs at each look, so that it excludes `bad_share` wrongly in 1 - `confidence` of studies at most.

        >>> round(Design(margin=0.5).bad_confidence, 4), round(Design(margin=0.5, max_seeds=60).bad_confidence, 3)
        (0.95, 0.981)
        """
        return 1 - share_level(tuple(range(self.seeds, self.max_seeds + 1)), self.bad_share, 1 - self.confidence, few=True)

    @cached_property
    def diverged_confidence(self) -> float:
        """Of the bound on diverged runs at each look, likewise."""
        return 1 - share_level(tuple(range(self.seeds, self.max_seeds + 1)), self.bad_share, 1 - self.confidence, few=False)

    @cached_property
    def held_levels(self) -> dict[int, float]:
        """One-sided level of "held" at each look that may say it."""
        return self._levels(range(max(2, self.seeds, self.least_runs), self.max_seeds + 1), obrien_fleming)

    @cached_property
    def lost_levels(self) -> dict[int, float]:
        """One-sided level of "lost" at each look."""
        return self._levels(range(max(2, self.seeds), self.max_seeds + 1), pocock)

    def _levels(self, looks: range, spending: Spending) -> dict[int, float]:
        if not looks:
            return {}
        error = (1 - self.confidence) * (1 if len(looks) == 1 else SPENT)
        return dict(zip(looks, levels(tuple(looks), self.max_seeds, spending, error), strict=True))


class SeedsVerdict(NamedTuple):
    """What the runs so far say; a bound is None where no look may use it."""

    outcome: Outcome
    difference: float  # mean over pairs; above 0 where the candidate is better
    lower: float | None  # of "held"
    upper: float | None  # of "lost"
    pairs: int
    bad: Rate
    diverged: Rate
    floored: bool  # whether the spread was below the resolution


def judge_seeds(candidate: Sequence[float | None], reference: Sequence[float | None], design: Design) -> SeedsVerdict:
    """The verdict over runs that share seeds.

    Args:
        candidate: One comparable score per seed, larger is better; None for a run that diverged.
        reference: Likewise, of the same seeds in the same order.
        design: Fixed beforehand.

    Returns:
        The verdict; "undecided" with fewer than two finished pairs.

    Raises:
        UserError: If an arm has no run, the numbers differ, or a score is not finite.

    >>> judge_seeds([89.9, 90.1, 90.0, 89.8, 90.2], [90.0, 90.2, 89.9, 89.9, 90.1], Design(1.0, 5, 5, bad_share=0.5)).outcome
    'held'
    """
    if not candidate or len(candidate) != len(reference):
        raise UserError(f"{len(candidate)} candidate and {len(reference)} reference runs: need as many of each, of the same seeds")
    for arm, scores in (("candidate", candidate), ("reference", reference)):
        check_finite(arm, scores)
    good = [score for score in reference if score is not None]
    worst = min(good, default=math.inf)
    diverged = Rate(sum(score is None for score in candidate), len(candidate))
    bad = Rate(sum(score is None or (bool(good) and score < worst - design.margin) for score in candidate), len(candidate))
    d = [a - b for a, b in zip(candidate, reference, strict=True) if a is not None and b is not None]
    n, difference = len(d), float(np.mean(d)) if d else math.nan
    lower = upper = None
    floored = False
    spread, floored = floored_spread(d, design.resolution)
    if spread:
        held, lost = (found.get(len(candidate), 0.0) for found in (design.held_levels, design.lost_levels))
        lower = difference - _half_width(held, n, spread) if held else None
        upper = difference + _half_width(lost, n, spread) if lost else None
    outcome: Outcome = "undecided"
    if diverged.at_least(design.diverged_confidence) > design.bad_share or (upper is not None and upper < -design.margin):
        outcome = "lost"
    elif lower is not None and lower > -design.margin and bad.at_most(design.bad_confidence) <= design.bad_share and _agrees(d, design):
        outcome = "held"
    return SeedsVerdict(outcome, difference, lower, upper, n, bad, diverged, floored)


def _half_width(level: float, n: int, spread: float) -> float:
    """Of a one-sided t bound of a mean."""
    return float(-special.stdtrit(n - 1, level)) * spread / math.sqrt(n)


def _agrees(d: Sequence[float], design: Design) -> bool:
    """Wilcoxon's signed-rank test of d > -margin; with fewer pairs than it needs, all must be above."""
    above = np.asarray(d) + design.margin
    if 0.5 ** len(d) > 1 - design.confidence:
        return bool((above > 0).all())
    return bool(stats.wilcoxon(above, alternative="greater", zero_method="zsplit").pvalue <= 1 - design.confidence)


class Power(NamedTuple):
    """What a design can be expected to say of an arm."""

    held: float  # probability
    lost: float
    runs: float  # mean number of seeds to the verdict, or to `max_seeds`


@lru_cache
def power(design: Design, *, spread: float, difference: float = 0.0, studies: int = 200, seed: int = 0) -> Power:
    """How often each verdict comes of an arm without bad runs, by simulation.

    Args:
        design: Fixed beforehand.
        spread: Standard deviation of the difference of two runs that share a seed, as the margin.
        difference: True mean of it; 0 for an arm that is as good as the reference.
        studies: Simulated ones, with normal scores.
        seed: Of them.

    Raises:
        UserError: If `spread` is not positive.
    """
    check_positive("spread", spread)
    chance, counts, runs = np.random.default_rng(seed), {"held": 0, "lost": 0, "undecided": 0}, 0
    for _ in range(studies):
        scores = chance.normal(0, spread / math.sqrt(2), (2, design.max_seeds))
        candidate, reference = (scores[0] + difference).tolist(), scores[1].tolist()
        outcome, n = "undecided", design.seeds - 1
        while outcome == "undecided" and n < design.max_seeds:
            n += 1
            outcome = judge_seeds(candidate[:n], reference[:n], design).outcome
        counts[outcome] += 1
        runs += n
    return Power(counts["held"] / studies, counts["lost"] / studies, runs / studies)
