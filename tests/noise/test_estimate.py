import math

import pytest

from bigbatch.core.checks import UserError
from bigbatch.noise.estimate import NoiseEstimate, estimate


def test_hand_worked():
    got = estimate([2.0, 2.0, 2.0], [10.0, 20.0, 30.0])
    half = 4.302652729911275 / math.sqrt(3) * 10 / 2  # t of two degrees of freedom, standard error, over the signal
    assert got[:3] == pytest.approx((10.0, max(0.0, 10 - half), 10 + half))
    assert (got.signal, got.noise, got.num_updates, got.num_skipped) == (2.0, 20.0, 3, 0)


def test_ratio_of_means_and_not_mean_of_ratios():
    assert estimate([1.0, 4.0, 1.0], [100.0, 100.0, 100.0]).noise_scale == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (NoiseEstimate(912.3, 702.0, 1204.0, 1.0, 912.3, 400), "910 [700, 1,200]"),
        (NoiseEstimate(912.3, math.nan, math.nan, 1.0, 912.3, 2), "910"),
        (NoiseEstimate(912.3, 480.0, math.inf, 1.0, 912.3, 9), "at least 480"),
        (NoiseEstimate(math.nan, 0.0, math.inf, -1.0, 912.3, 9), "no signal yet: any batch is possible"),
        (NoiseEstimate(math.nan, math.nan, math.nan, -1.0, 912.3, 9), "no signal above the noise"),
        (NoiseEstimate(0.0, 0.0, 0.0, 1.0, 0.0, 9), "0: the gradients of all samples are equal"),
        (NoiseEstimate(math.nan, 0.0, math.inf, 0.0, 0.0, 9), "no noise scale: every gradient is zero"),
    ],
)
def test_words(value, words):
    assert value.in_words() == words
    assert str(value).startswith(words)


def test_nothing_usable():
    with pytest.raises(UserError, match="2 updates, none of which tells signal from noise"):
        estimate([math.nan, 1.0], [1.0, math.inf])


def test_in_tokens_by_hand():  # 10 samples of 4 tokens
    tokens = NoiseEstimate(10.0, 8.0, 12.5, 2.0, 20.0, 7).in_tokens(4)
    assert tokens == NoiseEstimate(40.0, 32.0, 50.0, 2.0, 80.0, 7)
    assert tokens.noise / tokens.signal == tokens.noise_scale
