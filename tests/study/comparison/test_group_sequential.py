import numpy as np
import pytest
from scipy import stats

from bigbatch.study.comparison.group_sequential import levels, obrien_fleming, pocock, share_level

LOOKS = tuple(range(3, 15))


def test_hand_worked():
    """Half of the runs: 2 - 2 Phi(1.96 / sqrt(0.5)) = 0.00557 and 0.05 ln(1.859) = 0.0310; all of them: the whole error."""
    assert obrien_fleming(0.5, 0.05) == pytest.approx(2 * stats.norm.sf(stats.norm.isf(0.025) / 0.5**0.5))
    assert pocock(0.5, 0.05) == pytest.approx(0.03101, abs=1e-5)
    assert obrien_fleming(1.0, 0.05) == pytest.approx(pocock(1.0, 0.05)) == pytest.approx(0.05)


def test_two_looks_equal_the_bivariate_normal():
    """The second level leaves exactly what is to spend: P(Z_1 < b_1, Z_2 >= b_2) with correlation sqrt(1/2)."""
    for spending in (obrien_fleming, pocock):
        first, second = levels((5, 10), 10, spending, 0.05)
        b = stats.norm.isf([first, second])
        both = stats.multivariate_normal(cov=[[1, 0.5**0.5], [0.5**0.5, 1]]).cdf(b)
        assert first == pytest.approx(spending(0.5, 0.05), rel=1e-6)
        assert stats.norm.cdf(b[0]) - both == pytest.approx(0.05 - first, rel=1e-3)


@pytest.mark.parametrize("spending", [obrien_fleming, pocock])
def test_the_whole_error_is_spent_over_all_looks(spending):
    """40,000 walks of 14 normal steps: 5 % cross somewhere, within 4 standard errors; by Student's t at most 6 %, as the docstring says."""
    x = np.random.default_rng(0).normal(size=(40_000, 14))
    crossed = {"normal": np.zeros(len(x), bool), "t": np.zeros(len(x), bool)}
    for n, level in zip(LOOKS, levels(LOOKS, 14, spending, 0.05), strict=True):
        z = x[:, :n].mean(1) * n**0.5
        crossed["normal"] |= z > stats.norm.isf(level)
        crossed["t"] |= z / x[:, :n].std(1, ddof=1) > stats.t.isf(level, n - 1)
    assert crossed["normal"].mean() == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 40_000) ** 0.5)
    assert 0.05 < crossed["t"].mean() < 0.063


def test_one_look_spends_all():
    assert levels((14,), 14, obrien_fleming, 0.05) == (pytest.approx(0.05),)


def test_a_look_too_early_to_spend_anything_is_none():
    first, last = levels((1, 100), 100, obrien_fleming, 0.05)
    assert first == 0.0
    assert last == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("most", [14, 30, 60])
def test_bounds_of_a_share_are_wrong_in_one_study_of_twenty_over_all_looks(few, most):
    """By simulation, at the true share: looked at again and again at the full 5 %, the bound was wrong in 8 % of 30 and 12 % of 60."""
    share, looks = 0.2, range(3, most + 1)
    level = share_level(tuple(looks), share, 0.05, few=few)
    cases = (np.random.default_rng(most).random((20_000, most)) < share).cumsum(1)

    def wrong(at):
        excluded = np.zeros(len(cases), dtype=bool)
        for n in looks:
            seen = cases[:, n - 1]
            tail = stats.binom.cdf(seen, n, share) if few else stats.binom.sf(seen - 1, n, share)
            excluded |= tail <= at
        return excluded.mean()

    assert wrong(level) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(cases))
    assert wrong(level) > 0.03  # and no more careful than need be
    assert most == 14 or wrong(0.05) > 0.075
