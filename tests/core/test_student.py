"""Student's t and Fisher's F against scipy, and against values that a reader can look up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from bigbatch.core.student import fisher_tail, incomplete_beta, student_quantile, student_tail

DEGREES = st.floats(1, 1000) | st.integers(1, 1000)


def test_tables():
    """Two-sided 95 % and 99 % points of t and the 5 % point of F, as printed in textbooks."""
    assert [round(student_quantile(0.975, n), 3) for n in (1, 2, 5, 10, 30, 120, math.inf)] == [
        *(12.706, 4.303, 2.571, 2.228, 2.042, 1.980, 1.960),
    ]
    assert [round(student_quantile(0.995, n), 3) for n in (1, 5, 30)] == [63.657, 4.032, 2.750]
    assert [round(fisher_tail(f, d), 3) for f, d in ((4.10, (2, 10)), (2.71, (5, 20)))] == [0.05, 0.05]


@pytest.mark.parametrize(("p", "t"), [(0.5, 0.0), (0.75, 1.0), (0.25, -1.0), (0.0, -math.inf), (1.0, math.inf)])
def test_one_degree_of_freedom_is_cauchy(p, t):
    assert student_quantile(p, 1) == pytest.approx(t, rel=1e-14)


@pytest.mark.parametrize(("p", "degrees"), [(math.nan, 3), (1.1, 3), (-0.1, 3), (0.9, 0), (0.9, math.nan)])
def test_no_quantile(p, degrees):
    assert math.isnan(student_quantile(p, degrees))


@given(st.floats(0.51, 1 - 1e-9), DEGREES)
def test_quantile_is_scipys(p, degrees):
    assert student_quantile(p, degrees) == pytest.approx(special.stdtrit(degrees, p), rel=1e-9)
    assert student_quantile(1 - p, degrees) == pytest.approx(-student_quantile(p, degrees), rel=1e-6)


@given(st.floats(0, 100), DEGREES)
def test_tail_is_scipys(t, degrees):
    assert student_tail(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-9, abs=1e-300)


@given(st.floats(0, 100), DEGREES, DEGREES)
def test_fisher_is_scipys(f, d1, d2):
    assert fisher_tail(f, (d1, d2)) == pytest.approx(stats.f.sf(f, d1, d2), rel=1e-9, abs=1e-15)


@given(st.floats(0.1, 500), st.floats(0.1, 500), st.floats(0, 1))
def test_incomplete_beta_is_scipys_and_symmetric(a, b, x):
    here = incomplete_beta(a, b, x, 1 - x)
    assert here == pytest.approx(special.betainc(a, b, x), rel=1e-9, abs=1e-13)
    assert here + incomplete_beta(b, a, 1 - x, x) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("degrees", [1e4, 1e5, 1e6])
def test_many_degrees_of_freedom(degrees):
    assert student_quantile(0.975, degrees) == pytest.approx(special.stdtrit(degrees, 0.975), rel=1e-7)
    assert fisher_tail(2.0, (5, degrees)) == pytest.approx(stats.f.sf(2.0, 5, degrees), rel=1e-7)
