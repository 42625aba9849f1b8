import math

from bigbatch.study.expectation import expectation
from bigbatch.study.verdict import Design, power

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
