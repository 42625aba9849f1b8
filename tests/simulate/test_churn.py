"""Goodput by hand, and beside drawn losses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.churn import left_out, redone

RUNS = 4000


def drawn_redone(rng, period_s, lost_every_s, recovery_s):
    """Seconds until a period is done: tries that end with a loss, a recovery after each, and the one that does not."""
    took = np.zeros(RUNS)
    pending = np.ones(RUNS, dtype=bool)
    while pending.any():
        lost = rng.exponential(lost_every_s, RUNS)
        fails = pending & (lost < period_s)
        took += np.where(fails, lost + recovery_s, np.where(pending, period_s, 0.0))
        pending = fails
    return took


@pytest.mark.parametrize(
    ("period_s", "workers", "lost_every_s", "recovery_s"), [(30, 16, 8640, 60), (34, 64, 3600, 60), (5, 1, 3, 2), (9, 256, 3600, 0)]
)
def test_redone_agrees_with_draws(period_s, workers, lost_every_s, recovery_s):
    took = drawn_redone(np.random.default_rng(0), period_s, lost_every_s / workers, recovery_s)
    expected = period_s / redone(period_s, lost_every_s=lost_every_s / workers, recovery_s=recovery_s)
    assert expected == pytest.approx(took.mean(), abs=4 * took.std() / math.sqrt(RUNS))


@pytest.mark.parametrize(
    ("period_s", "workers", "lost_every_s", "recovery_s", "exchanges", "together"),
    [(60, 16, 3600, 60, 1, 1), (60, 64, 3600, 30, 6, 1), (500, 8, 1000, 60, 1, 4), (36, 1024, 8640, 60, 2, 1)],
)
def test_left_out_agrees_with_draws(period_s, workers, lost_every_s, recovery_s, exchanges, together):
    """Every worker's first loss in a period; of a period's work, that of hosts without one, over the seconds with waiting."""
    rng = np.random.default_rng(1)
    runs = RUNS if workers < 100 else 400
    # A worker that is replaced can be lost again: losses of all are a Poisson process in each part of the period.
    counts = rng.poisson(period_s / exchanges / lost_every_s, (runs, exchanges, workers))
    seconds = period_s + recovery_s * (counts.sum(axis=2) > 0).sum(axis=1)
    kept = (counts.sum(axis=1).reshape(runs, workers // together, together).sum(axis=2) == 0).mean(axis=1) * period_s
    goodput = left_out(period_s, workers=workers, lost_every_s=lost_every_s, recovery_s=recovery_s, exchanges=exchanges, together=together)
    off = kept - goodput * seconds  # of mean zero, if that is the ratio of means
    assert off.mean() == pytest.approx(0.0, abs=4 * off.std() / math.sqrt(runs))


def test_first_order():
    """A loss every 600 s costs 30 s and half of 6."""
    assert redone(6.0, lost_every_s=600.0, recovery_s=30.0) == pytest.approx(1 / (1 + 33 / 600), rel=2e-3)
    assert left_out(6.0, workers=10, lost_every_s=6000.0, recovery_s=30.0) == pytest.approx(1 / (1 + 6 / 6000 + 30 / 600), rel=2e-3)


def test_hand_worked():
    """A period as long as the mean between losses: e - 1 tries' worth, and as much again with R = M."""
    assert redone(2.0, lost_every_s=2.0, recovery_s=0.0) == pytest.approx(1 / (math.e - 1))
    assert redone(2.0, lost_every_s=2.0, recovery_s=2.0) == pytest.approx(0.5 / (math.e - 1))
    assert left_out(2.0, workers=3, lost_every_s=2.0, recovery_s=2.0) == pytest.approx(math.exp(-1) / (2 - math.exp(-3)))
    assert left_out(2.0, workers=3, lost_every_s=2.0, recovery_s=2.0, exchanges=2, together=3) == pytest.approx(
        math.exp(-3) / (1 + 2 * (1 - math.exp(-1.5)))
    )
    assert redone(20.1, lost_every_s=1.0, recovery_s=0.0) == 0.0


@given(st.floats(1, 1e4), st.integers(1, 5000), st.floats(10, 1e7), st.floats(0, 1e3))
def test_who_stops_loses_most(period_s, workers, lost_every_s, recovery_s):
    """One who alone repeats what is lost, against all who do."""
    own = redone(period_s, lost_every_s=lost_every_s, recovery_s=recovery_s)
    together = redone(period_s, lost_every_s=lost_every_s / workers, recovery_s=recovery_s)
    assert 0 <= together <= own * (1 + 1e-9) <= 1 + 2e-9
    assert 0 <= left_out(period_s, workers=workers, lost_every_s=lost_every_s, recovery_s=recovery_s) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period_s": 0.0}, "period_s = 0.0: must be a finite number above zero"),
        ({"lost_every_s": -1.0}, "lost_every_s = -1.0: must be a finite number above zero"),
        ({"recovery_s": math.inf}, "recovery_s = inf: must be zero or above; give the seconds from a loss until work goes on"),
        ({"workers": 0}, "workers = 0: must be 1 or more; give how many there are"),
        ({"exchanges": 0}, "exchanges = 0: must be 1 or more"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(UserError, match=message):
        left_out(**{"period_s": 1.0, "workers": 2, "lost_every_s": 10.0, "recovery_s": 1.0, **change})
