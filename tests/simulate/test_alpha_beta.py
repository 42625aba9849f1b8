import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigbatch.core.checks import UserError
from bigbatch.simulate.alpha_beta import AlphaBeta, fit_alpha_beta, ring_all_reduce, ring_link

SIZES = [4096 * 4**i for i in range(7)]
alphas, betas = st.floats(1e-6, 1e-1), st.floats(1e-11, 1e-6)


def test_hand_worked():
    """1 + b/1000 at three sizes; the median drops the slow 9."""
    fit = fit_alpha_beta({1000: [9.0, 2.0, 2.0], 2000: [3.0], 4000: [5.0]})
    assert fit.alpha_s == pytest.approx(1.0)
    assert fit.beta_s_per_byte == pytest.approx(0.001)
    assert fit.residual == pytest.approx(0.0, abs=1e-12)
    assert fit.bandwidth_bytes_per_s == pytest.approx(1000.0)
    assert fit.seconds(8000) == pytest.approx(9.0)


def test_latency_alone_is_the_mean_that_relative_errors_weigh():
    """Times fall, so beta = 0. alpha minimises (a/1 - 1)^2 + (a/2 - 1)^2: a = (1 + 1/2) / (1 + 1/4) = 1.2, errors 0.2 and -0.4."""
    fit = fit_alpha_beta({1000: [2.0], 2000: [1.0]})
    assert fit.alpha_s == pytest.approx(1.2)
    assert fit.beta_s_per_byte == 0
    assert fit.bandwidth_bytes_per_s == math.inf
    assert fit.residual == pytest.approx(math.sqrt((0.2**2 + 0.4**2) / 2))


def test_bytes_alone():
    """A line through (1, 1) and (2, 4) would start below zero. beta minimises (beta - 1)^2 + (beta/2 - 1)^2: 1.2 again."""
    fit = fit_alpha_beta({1: [1.0], 2: [4.0]})
    assert fit.alpha_s == 0
    assert fit.beta_s_per_byte == pytest.approx(1.2)


@given(alphas, betas)
def test_without_noise_the_fit_is_exact(alpha, beta):
    truth = AlphaBeta(alpha, beta)
    fit = fit_alpha_beta({b: [truth.seconds(b)] for b in SIZES})
    for b in SIZES:
        assert fit.seconds(b) == pytest.approx(truth.seconds(b), rel=1e-6)
    assert fit.residual < 1e-6


@given(alphas, betas, st.integers(0, 10**6))
def test_noise_and_stragglers_are_borne(alpha, beta, seed):
    """5 % of noise, and two rounds of nine ten times slower, as on a shared machine: every size within 15 %."""
    truth, chance = AlphaBeta(alpha, beta), random.Random(seed)
    measured = {}
    for b in SIZES:
        measured[b] = [truth.seconds(b) * chance.uniform(0.95, 1.05) * (10 if late < 2 else 1) for late in range(9)]
        chance.shuffle(measured[b])
    fit = fit_alpha_beta(measured)
    assert fit.alpha_s >= 0
    assert fit.beta_s_per_byte >= 0
    for b in SIZES:
        assert fit.seconds(b) == pytest.approx(truth.seconds(b), rel=0.15)
    if 0.1 < beta * SIZES[3] / alpha < 10:  # both matter in the measured range, so both are known
        assert fit.alpha_s == pytest.approx(alpha, rel=0.15)
        assert fit.beta_s_per_byte == pytest.approx(beta, rel=0.15)


@given(st.lists(st.floats(1e-6, 10.0), min_size=7, max_size=7), st.floats(0.01, 100.0), st.sampled_from(["alpha_s", "beta_s_per_byte"]))
def test_no_other_model_is_nearer(times, factor, field):
    """Of any times at all: the fit is the best that alpha, beta >= 0 allow."""
    fit = fit_alpha_beta({b: [t] for b, t in zip(SIZES, times, strict=True)})

    def error(model):
        return sum(((model.seconds(b) - t) / t) ** 2 for b, t in zip(SIZES, times, strict=True))

    old = getattr(fit, field)
    other = fit._replace(**{field: old * factor if old else factor * (1.0 if field == "alpha_s" else 1e-7)})
    assert error(fit) <= error(other) * (1 + 1e-9)
    assert fit.residual == pytest.approx(math.sqrt(error(fit) / 7))


def test_ring_hand_worked():
    """4 workers: 6 messages, each of a quarter of the bytes."""
    ring = ring_all_reduce(AlphaBeta(alpha_s=0.5, beta_s_per_byte=0.25), workers=4)
    assert (ring.alpha_s, ring.beta_s_per_byte) == (3.0, 0.375)
    assert ring.seconds(8) == 6 * (0.5 + 0.25 * 8 / 4)


@given(alphas, betas, st.integers(2, 512))
def test_the_link_of_a_ring_is_its_inverse(alpha, beta, workers):
    back = ring_link(ring_all_reduce(AlphaBeta(alpha, beta, residual=0.1), workers=workers), workers=workers)
    assert back == pytest.approx((alpha, beta, 0.1))


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({}, "0 sizes measured: latency and bandwidth need two at least"),
        ({4096: [1.0]}, "1 sizes measured"),
        ({4096: [1.0], 0: [1.0]}, "num_bytes = 0: must be a finite number above zero"),
        ({4096: [1.0], 8192: []}, "times at 8192 bytes = 0: must be a finite number above zero; measure that size"),
        ({4096: [1.0], 8192: [0.0]}, "seconds = 0.0: must be a finite number above zero"),
        ({4096: [1.0], 8192: [math.nan]}, "seconds = nan: must be a finite number above zero"),
    ],
)
def test_refuses_measurements(measured, message):
    with pytest.raises(UserError, match=message):
        fit_alpha_beta(measured)


@pytest.mark.parametrize("convert", [ring_all_reduce, ring_link])
def test_refuses_a_ring_of_one(convert):
    with pytest.raises(UserError, match="workers = 1: a ring needs two at least"):
        convert(AlphaBeta(1.0, 1.0), workers=1)
