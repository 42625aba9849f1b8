"""The verdict over seeds: hand-worked bounds, its error and power by simulation, tails, ties, NaN and divergence."""

import math

import numpy as np
import pytest
from scipy import stats

from bigbatch.core.checks import UserError
from bigbatch.study.comparison.verdict import Design, Rate, judge_seeds, power

FIXED = Design(margin=0.5, seeds=5, max_seeds=5, bad_share=0.5)


def study(make, design, chance):
    """Outcome and number of seeds of a simulated study; `make(n)` gives a candidate's scores, the reference is normal around 0."""
    candidate, reference = make(design.max_seeds), chance.normal(0, 0.3, design.max_seeds)
    for n in range(design.seeds, design.max_seeds + 1):
        outcome = judge_seeds(candidate[:n].tolist(), reference[:n].tolist(), design).outcome
        if outcome != "undecided":
            break
    return outcome, n


def share_held(make_by, design=Design(margin=0.5), studies=400, seed=0):  # noqa: B008
    chance = np.random.default_rng(seed)
    outcomes = [study(lambda n: make_by(chance, n), design, chance)[0] for _ in range(studies)]
    return outcomes.count("held") / studies, outcomes.count("lost") / studies


def test_hand_worked():
    """Differences -0.2, -0.1, 0, 0.1, 0.2: mean 0, variance 0.025, so se = 0.0707; one look, t_0.95 with 4 degrees of freedom = 2.1318."""
    reference = [90.0, 91.0, 89.0, 90.5, 89.5]
    got = judge_seeds([score + d for score, d in zip(reference, (-0.2, -0.1, 0, 0.1, 0.2), strict=True)], reference, FIXED)
    assert got.difference == pytest.approx(0, abs=1e-12)
    assert (got.lower, got.upper) == (pytest.approx(-2.1318468 * math.sqrt(0.005)), pytest.approx(2.1318468 * math.sqrt(0.005)))
    assert (got.outcome, got.pairs, got.bad) == ("held", 5, (0, 5))
    shifted = judge_seeds([score + d - 1 for score, d in zip(reference, (-0.2, -0.1, 0, 0.1, 0.2), strict=True)], reference, FIXED)
    assert (shifted.outcome, shifted.difference) == ("lost", pytest.approx(-1))


def test_seeds_are_paired():
    """What a seed does to both arms cancels: reversed, the same scores decide nothing."""
    reference = [80.0, 85.0, 90.0, 95.0, 99.0]
    candidate = [score - 0.1 + 0.05 * (-1) ** i for i, score in enumerate(reference)]
    assert judge_seeds(candidate, reference, FIXED).outcome == "held"
    assert judge_seeds(candidate[::-1], reference, FIXED).outcome == "undecided"


def test_more_than_one_look_spends_less_at_each():
    """At the same five runs, a design that may go on has a wider bound than one that ends there."""
    scores = [89.9, 90.1, 90.0, 89.8, 90.2], [90.0, 90.2, 89.9, 89.9, 90.1]
    goes_on = judge_seeds(*scores, Design(margin=0.5, seeds=3, max_seeds=10, bad_share=0.5))
    ends = judge_seeds(*scores, FIXED)
    assert goes_on.lower < ends.lower
    assert goes_on.upper > ends.upper


def test_equal_arms_are_held():
    """Power at the defaults: 97 % (benchmarks/verdict_error.py); four standard errors of 400 studies are 3.4 points."""
    held, lost = share_held(lambda chance, n: chance.normal(0, 0.3, n))
    assert held >= 0.97 - 0.034
    assert lost <= 0.01


@pytest.mark.parametrize(
    "candidate",
    [
        lambda chance, n: chance.normal(-0.5, 0.3, n),
        lambda chance, n: -0.5 + 0.3 * (1 - chance.exponential(size=n)),
        lambda chance, n: chance.normal(0, 0.3, n) - 3 * (chance.random(n) < 0.2),
    ],
    ids=["normal", "skewed to the left", "3 points lower in one run of five"],
)
def test_an_arm_that_loses_is_held_in_one_case_of_twenty(candidate):
    """0.05 and 3 standard errors of 400 studies, 0.033; Welch's test at 3 seeds has 0.23 for the last."""
    held, lost = share_held(candidate)
    assert held <= 0.05 + 0.033
    assert lost <= 0.05 + 0.033


def test_an_arm_that_is_far_worse_is_lost_at_once():
    chance = np.random.default_rng(0)
    ended = [study(lambda n: chance.normal(-3, 0.3, n), Design(margin=0.5), chance) for _ in range(50)]
    assert {outcome for outcome, _ in ended} == {"lost"}
    assert sum(n for _, n in ended) / 50 < 3.5


def test_held_needs_so_many_runs_without_a_bad_one():
    """0.8^14 < 0.05 < 0.8^13: before 14 runs, one bad run in five can't be excluded."""
    design = Design(margin=0.5)
    scores = [90 + 0.1 * (-1) ** i for i in range(14)]
    assert design.least_runs == 14
    assert judge_seeds(scores[:13], scores[:13][::-1], design).outcome == "undecided"
    assert judge_seeds(scores, scores[::-1], design).outcome == "held"
    wide = Design(margin=1.0, seeds=14, max_seeds=14)
    one_bad = [*scores[:13], 88.0]
    assert judge_seeds(one_bad, [90.0 + 0.1 * (-1) ** i for i in range(14)], wide).bad == (1, 14)
    assert judge_seeds(one_bad, [90.0 + 0.1 * (-1) ** i for i in range(14)], wide).outcome == "undecided"


def test_one_lucky_seed_does_not_hold_an_arm():
    """Wilcoxon's test: 13 runs 0.6 below and one far above have a mean above the margin."""
    assert judge_seeds([-0.6] * 13 + [30.0], [0.0] * 14, Design(margin=0.5)).outcome == "undecided"


def test_equal_scores_have_an_interval():
    """A spread of one test sample, 0.1 points: t_0.95 with 4 degrees of freedom, 2.1318, times 0.1 / sqrt(5)."""
    got = judge_seeds([90.0] * 5, [90.0] * 5, Design(margin=0.5, seeds=5, max_seeds=5, bad_share=0.5, resolution=0.1))
    assert got.floored
    assert (got.lower, got.upper) == (pytest.approx(-0.09534, abs=1e-4), pytest.approx(0.09534, abs=1e-4))
    unknown = judge_seeds([90.0] * 5, [90.0] * 5, FIXED)
    assert (unknown.outcome, unknown.lower, unknown.upper) == ("undecided", None, None)


def test_diverged_runs_are_a_rate():
    """One of 14 is no "lost": 7 %, and 0.2 to 34 % by Clopper and Pearson; three of three are: above 37 % at 95 %."""
    good = [90 + 0.1 * (-1) ** i for i in range(14)]
    one = judge_seeds([None, *good[1:]], good, Design(margin=0.5))
    assert (one.outcome, one.diverged, one.pairs) == ("undecided", (1, 14), 13)
    assert one.diverged.words(0.95) == "1 of 14 (7.14 %; 0.181 to 33.9 % at 95 %)"
    assert judge_seeds([None] * 3, good[:3], Design(margin=0.5)).outcome == "lost"
    assert judge_seeds([None, None, 90.0], good[:3], Design(margin=0.5)).outcome == "undecided"
    many = [90 + 0.1 * (-1) ** i for i in range(40)]
    rare = judge_seeds([None, *many[2:], many[0]], many, Design(margin=0.5, max_seeds=40))
    assert (rare.outcome, rare.diverged, rare.pairs) == ("held", (1, 40), 39)  # at most 11 % at 95 %
    fixed = judge_seeds([None, 80.0, 80.1, 79.9, 80.0], good[:5], FIXED)
    assert (fixed.outcome, fixed.pairs) == ("lost", 4)


@pytest.mark.parametrize(("cases", "runs"), [(0, 14), (1, 14), (3, 10), (10, 10)])
def test_rates_equal_scipys_exact_interval(cases, runs):
    want = stats.binomtest(cases, runs).proportion_ci(0.9, method="exact")
    got = Rate(cases, runs)
    assert (got.at_least(0.95), got.at_most(0.95)) == (pytest.approx(want.low), pytest.approx(want.high))


def test_power_is_what_it_says():
    """Of a fixed number of runs without a rule on bad ones: the noncentral t distribution's."""
    design = Design(margin=0.5, seeds=8, max_seeds=8, bad_share=0.5)
    exact = stats.nct.sf(stats.t.isf(0.05, 7), 7, 0.5 * math.sqrt(8) / 0.5)
    got = power(design, spread=0.5, studies=1000)
    assert exact - 0.1 < got.held < exact + 0.04  # Wilcoxon's test takes some
    assert got.runs == 8
    assert power(Design(margin=0.5), spread=1e-3, studies=20) == (1.0, 0.0, 14.0)


def test_refuses():
    with pytest.raises(UserError, match="score of candidate run 1 = nan: must be finite; see why the task's score is not a number"):
        judge_seeds([1.0, math.nan], [1.0, 2.0], FIXED)
    with pytest.raises(UserError, match="1 candidate and 2 reference runs: need as many of each, of the same seeds"):
        judge_seeds([1.0], [1.0, 2.0], FIXED)
    for settings, message in (
        ({"margin": 0}, "margin = 0: must be a finite number above zero"),
        ({"seeds": 0}, "seeds = 0: must be"),
        ({"bad_share": 1.0}, "bad_share = 1.0: must lie between 0 and 1; 0.2 is usual"),
        ({"max_seeds": 2}, "max_seeds = 2: must be seeds = 3 or more; raise it"),
    ):
        with pytest.raises(UserError, match=message):
            Design(**{"margin": 0.5, **settings})
