import math

import numpy as np
import pytest

from bigbatch.study.comparison.expectation import expectation, seeds_asked_for
from bigbatch.study.comparison.verdict import Design, power

DESIGN = Design(margin=0.5)


def test_assumed_before_any_run():
    said = expectation(DESIGN, [])
    assert said.startswith('3 to 14 seeds an arm, margin 0.5 points: of an arm as good as the reference, "held" is said in ')
    assert "with an assumed spread of 0.3 points, for none is measured yet; of one that truly loses the margin in at most 5 %" in said
    assert f"in {100 * power(DESIGN, spread=0.3 * math.sqrt(2)).held:.0f} % of cases" in said


def test_measured_on_the_reference():
    """Scores 90, 91, 92: standard deviation 1."""
    said = expectation(DESIGN, [[90.0, None, 91.0, math.nan, 92.0]])
    assert "with a spread of 1 points, measured on 3 runs of the reference" in said


def test_measured_on_differences():
    """Differences 0 and 0.2 of one arm, 0, 1 and 2 of another: variances 0.02 and 1 with 1 and 2 degrees of freedom, pooled 2.02/3."""
    said = expectation(DESIGN, [[90.0, 90.0, 90.0], [90.0, 90.2], [90.0, 91.0, 92.0]])
    assert f"the measured spread of their differences, {math.sqrt(2.02 / 3):.2g} points" in said


def test_too_few_seeds_say_so():
    said = expectation(Design(margin=0.5, max_seeds=5), [])
    assert '"held" is said in 0 % of cases' in said
    assert said.endswith("; fewer than 14 seeds can't exclude bad runs (--bad-share)")


@pytest.mark.parametrize(
    ("reference", "wanted"), [([], 7), ([90.0, 90.0, 90.0], 3), ([90.0, 90.3, 89.7], 7), ([90.0, 93.0, 87.0], 14), ([90.0, None, 90.6], 11)]
)
def test_first_seeds_by_power_at_the_reference_s_spread(reference, wanted):
    seeds, why = seeds_asked_for(Design(0.5, 3, 14), reference)
    assert seeds == wanted
    assert why.startswith(f"{wanted} seeds first: 80 % power at a spread of ")
    assert ("assumed" in why) == (len(reference) < 2)


def test_so_many_seeds_have_the_power():
    from bigbatch.study.comparison.noninferiority import noninferiority

    chance, (seeds, _) = np.random.default_rng(0), seeds_asked_for(Design(0.5, 3, 40), [90.0, 90.3, 89.7])
    held = sum(
        noninferiority(scores[0].tolist(), scores[1].tolist(), margin=0.5).outcome == "held"
        for scores in chance.normal(90, 0.3, (2000, 2, seeds))
    )
    assert 0.75 < held / 2000 < 0.95  # Welch's test has more degrees of freedom than the paired one
