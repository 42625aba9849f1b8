"""The rules are maps from one noise scale to a batch: what each says, in terms of B_simple = tr(S) / |G|^2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.batching.seeing import show

from bigbatch.batching import (
    CABS,
    AdaScale,
    BatchRule,
    DiveBatch,
    Goodput,
    InnerProductTest,
    NoiseScaleRule,
    NormTest,
    SimiGrad,
    UpdateMeasurement,
)
from bigbatch.batching.adascale import gain
from bigbatch.batching.cabs import cabs
from bigbatch.batching.divebatch import divebatch, num_diverse
from bigbatch.batching.goodput import efficiency
from bigbatch.batching.noise_scale import batch_of_noise_scale
from bigbatch.batching.norm_test import norm_test
from bigbatch.batching.simigrad import batch_at_similarity, similarity
from bigbatch.batching.smoothed import noise_scale

SIGNAL, B_SIMPLE, MULTIPLE = st.floats(0.01, 100), st.floats(1, 1e5), st.floats(1, 100)


@given(SIGNAL, B_SIMPLE, MULTIPLE, st.integers(1, 1000))
def test_the_table(signal, b_simple, s, base):
    noise, B = signal * b_simple, s * base
    assert noise_scale(signal, noise) == pytest.approx(b_simple)
    r = gain(signal, noise, base, B)
    assert r == pytest.approx(s * (b_simple + base) / (b_simple + B))
    assert efficiency(b_simple, base, B) == pytest.approx(r / s)
    assert similarity(B, signal=signal, noise=noise) == pytest.approx(1 / (1 + 2 * b_simple / B))
    assert num_diverse(signal, noise) == pytest.approx(1 + b_simple)
    assert cabs(0.1, noise, 2.0) == pytest.approx(0.1 * signal / 2.0 * b_simple)
    assert norm_test(1e12, signal=signal, noise=noise, theta=1e-9) == pytest.approx(b_simple / 1e-18, rel=1e-3)  # S/B negligible in |g|^2


@given(B_SIMPLE)
def test_settings_at_which_all_ask_for_the_noise_scale(b_simple):
    assert batch_of_noise_scale(b_simple, b_simple) == pytest.approx(b_simple)
    assert batch_at_similarity(b_simple, 1 / 3) == pytest.approx(b_simple)
    assert divebatch(1, num_diverse(1.0, b_simple), delta=1.0) == pytest.approx(b_simple, abs=1)
    assert cabs(0.1, 1.0 * b_simple, loss=0.1) == pytest.approx(b_simple)
    passes = 1.0001 * b_simple
    assert norm_test(passes, signal=1.0, noise=b_simple, theta=0.5**0.5) == passes
    assert norm_test(b_simple / 2, signal=1.0, noise=b_simple, theta=0.5**0.5) > b_simple / 2


RULES = [
    lambda: NoiseScaleRule(exchange_rate=1000.0),
    lambda: NormTest(theta=0.5),
    lambda: InnerProductTest(theta=0.1),
    CABS,
    lambda: SimiGrad(target=0.5),
    lambda: DiveBatch(delta=1.0),
    lambda: Goodput(base_batch=64, largest=8192, alpha_s=0.1, beta_s_per_sample=1e-4),
]


@pytest.mark.parametrize("make", RULES)
def test_more_noise_never_asks_for_less_and_somewhere_for_more(make):
    seen = [
        {"signal": 1.0, "noise": noise, "noise_along": noise / 2, "lr": 0.1, "loss": 1.0} for noise in (600.0, 1000.0, 5000.0, 50_000.0)
    ]
    wishes = [show(make(), **one).propose(64).global_batch for one in seen]
    assert wishes == sorted(wishes)
    assert wishes[0] < wishes[-1]


@pytest.mark.parametrize("make", [*RULES, lambda: AdaScale(64)])
def test_keeps_to_the_protocol(make):
    rule: BatchRule = make()
    assert rule.propose(64) is None
    rule.observe(UpdateMeasurement(64))
    assert rule.propose(64) is None
    rule.load_state_dict(rule.state_dict())
