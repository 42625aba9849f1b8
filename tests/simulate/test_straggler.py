import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.straggler import deviation_of_largest, expected_largest, slowest, slowest_group, slowest_nearby


@pytest.mark.parametrize(
    ("number", "known"),
    [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi)), (10, 1.53875), (100, 2.50759), (1000, 3.24144)],
)
def test_known_values(number, known):
    """Of the order statistics of a normal (Harter 1961)."""
    assert expected_largest(number) == pytest.approx(known, abs=2e-5)


@pytest.mark.parametrize("number", [7, 64, 4096])
def test_agrees_with_draws(number):
    draws = np.random.default_rng(0).standard_normal((2000, number)).max(axis=1)
    assert expected_largest(number) == pytest.approx(draws.mean(), abs=4 * draws.std() / math.sqrt(len(draws)))
    assert deviation_of_largest(number) == pytest.approx(draws.std(), rel=4 / math.sqrt(len(draws)))  # tails are heavier than a normal's


@given(st.integers(2, 4096))
def test_below_its_bound_and_rising(number):
    assert expected_largest(number - 1) < expected_largest(number) < math.sqrt(2 * math.log(number)) + 1e-9


def test_hand_worked():
    """Two workers, 10 %: 1 + 0.1 / sqrt(pi). Over 4 updates half of the waiting. Of 1,000 that wait for two: sqrt(2 ln 2)."""
    assert slowest(2, 0.1) == pytest.approx(1 + 0.1 / math.sqrt(math.pi))
    assert slowest(2, 0.1, updates=4) == pytest.approx(1 + 0.05 / math.sqrt(math.pi))
    assert slowest_nearby(1000, 0.1, waits_for=2) == pytest.approx(1 + 0.1 * math.sqrt(2 * math.log(2)))
    assert slowest_nearby(1000, 0.1, waits_for=2, updates=4) == pytest.approx(1 + 0.05 * math.sqrt(2 * math.log(2)))


@pytest.mark.parametrize(("number", "known"), [(1, 1.0), (2, 1 - 1 / math.pi), (3, 0.559467), (10, 0.344344), (100, 0.184)])
def test_known_variances(number, known):
    """Of the order statistics of a normal (Teichroew 1956; 100: to three digits)."""
    assert deviation_of_largest(number) ** 2 == pytest.approx(known, abs=5e-4 if number == 100 else 2e-5)


@pytest.mark.parametrize(("together", "groups", "updates"), [(8, 4, 30), (2, 64, 30), (8, 512, 10)])
def test_groups_agree_with_draws(together, groups, updates):
    """The sum over updates is taken for normal: to 2 % of the waiting."""
    rng = np.random.default_rng(0)
    sums = [rng.standard_normal((updates, groups, together)).max(axis=2).sum(axis=0).max() / updates for _ in range(400)]
    assert slowest_group(together, groups, 1.0, updates) - 1 == pytest.approx(np.mean(sums), rel=0.02)


def test_groups_hand_worked():
    """Groups of one are workers; one group waits in each update."""
    assert slowest_group(1, 64, 0.1, updates=9) == pytest.approx(slowest(64, 0.1, updates=9))
    assert slowest_group(64, 1, 0.1, updates=9) == pytest.approx(slowest(64, 0.1))


@given(st.integers(1, 4096), st.floats(0, 1), st.integers(1, 4096))
def test_waiting_for_some_is_at_most_waiting_for_all(workers, spread, waits_for):
    assert 1 <= slowest_nearby(workers, spread, waits_for) <= slowest(workers, spread) + 1e-12


def test_refuses_none():
    with pytest.raises(UserError, match="number = 0: must be 1 or more; the largest of none is unknown"):
        expected_largest(0)
