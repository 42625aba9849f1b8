import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bigbatch.core.checks import UserError
from bigbatch.study.comparison.noninferiority import noninferiority


def test_hand_worked():
    """Both arms: three runs, variance 0.01, so se^2 = 0.02/3, df = 4, t = 2.1318; half width 0.17406."""
    got = noninferiority([89.7, 89.8, 89.9], [89.9, 90.0, 90.1], margin=0.5)
    assert got.difference == pytest.approx(-0.2)
    assert got.lower == pytest.approx(-0.2 - 2.1318468 * math.sqrt(0.02 / 3), abs=1e-6)
    assert got.upper == pytest.approx(-0.2 + 2.1318468 * math.sqrt(0.02 / 3), abs=1e-6)
    assert got.outcome == "held"


def test_unequal_spreads_use_welchs_degrees_of_freedom():
    """Variances 1 (n = 3) and 0.01 (n = 3): se^2 = 1.01/3, df = 1.01^2 / ((1 + 0.0001) / 2) = 2.0400."""
    got = noninferiority([88.0, 89.0, 90.0], [89.9, 90.0, 90.1], margin=0.5)
    assert got.difference == pytest.approx(-1.0)
    assert got.lower == pytest.approx(-1.0 - stats.t.ppf(0.95, 2 * 1.01**2 / 1.0001) * math.sqrt(1.01 / 3))


@pytest.mark.parametrize(
    ("candidate", "outcome"),
    [([89.9, 90.0, 90.1], "held"), ([88.0, 88.1, 88.2], "lost"), ([89.0, 89.6, 90.4], "undecided"), ([95.0, 95.1, 95.2], "held")],
)
def test_outcomes(candidate, outcome):
    assert noninferiority(candidate, [89.9, 90.0, 90.1], margin=0.5).outcome == outcome


def test_one_run_tells_nothing():
    got = noninferiority([50.0], [90.0, 90.1], margin=0.5)
    assert (got.outcome, got.lower, got.upper) == ("undecided", None, None)


def test_equal_scores_are_equal_to_the_resolution_only():
    """Two runs an arm, spread 0.1 each by the resolution: se^2 = 0.01, df = 2, t = 2.92: half width 0.292, not 0."""
    got = noninferiority([90.0, 90.0], [90.0, 90.0], margin=0.5, resolution=0.1)
    assert (got.outcome, got.lower, got.upper) == ("held", pytest.approx(-0.292, abs=1e-4), pytest.approx(0.292, abs=1e-4))
    assert noninferiority([90.0, 90.0], [90.0, 90.0], margin=0.2, resolution=0.1).outcome == "undecided"
    assert noninferiority([90.0, 90.0], [90.0, 90.0], margin=0.5) == ("undecided", 0.0, None, None)


@given(scores=st.lists(st.floats(80, 95), min_size=2, max_size=6), shift=st.floats(-3, 3), margin=st.floats(0.01, 2))
def test_a_wider_margin_or_a_better_candidate_never_turns_held_into_lost(scores, shift, margin):
    order = ["lost", "undecided", "held"].index
    reference = [90.0, 90.1, 90.2]
    base = order(noninferiority([s + shift for s in scores], reference, margin=margin).outcome)
    assert order(noninferiority([s + shift + 1 for s in scores], reference, margin=margin).outcome) >= base
    assert order(noninferiority([s + shift for s in scores], reference, margin=2 * margin).outcome) >= base


def test_the_test_keeps_its_promise():
    """A candidate that truly loses the margin is called "held" in at most about 5 % of studies."""
    chance, studies = random.Random(0), 2000
    held = 0
    for _ in range(studies):
        candidate, reference = ([chance.gauss(mean, 0.2) for _ in range(5)] for mean in (89.5, 90.0))
        held += noninferiority(candidate, reference, margin=0.5).outcome == "held"
    assert held / studies == pytest.approx(0.05, abs=0.015)


def test_refuses():
    with pytest.raises(UserError, match="margin = 0: must be a finite number above zero"):
        noninferiority([1.0], [1.0], margin=0)
    with pytest.raises(UserError, match="0 candidate and 2 reference runs: each arm needs one at least"):
        noninferiority([], [1.0, 2.0], margin=1)
    with pytest.raises(UserError, match="score of reference run 1 = nan: must be finite"):
        noninferiority([1.0, 2.0], [1.0, math.nan], margin=1)
