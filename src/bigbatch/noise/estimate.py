"""The noise scale with its interval, and what it says in words."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bigbatch.core.checks import UserError
from bigbatch.noise.interval import doubt_of, ratio_of_means

DOUBTS = {
    "drifts": "drifts: the interval is of these updates, and not of others",
    "heavy tails": "heavy tails: one update decides, and the interval is too narrow",
}
"""What a doubt means for the interval."""


class NoiseEstimate(NamedTuple):
    """A noise scale, in samples, from some updates; `str()` says it in words."""

    noise_scale: float  # NaN where the mean signal is not positive: no signal above the noise
    lower: float  # NaN with fewer than three updates
    upper: float  # infinity where the data give no upper bound
    signal: float  # mean |G|^2
    noise: float  # mean tr(S) of one sample
    num_updates: int
    num_skipped: int = 0  # updates that told nothing: not finite, or of one group of samples
    doubt: str = ""  # see `doubt_of`

    def __str__(self) -> str:
        skipped = f", {self.num_skipped:,} skipped" if self.num_skipped else ""
        doubt = f"; {DOUBTS[self.doubt]}" if self.doubt else ""
        return f"{self.in_words()} ({self.num_updates:,} update{'s' * (self.num_updates != 1)}{skipped}{doubt})"

    def in_tokens(self, tokens_per_sample: float) -> "NoiseEstimate":
        """The same in tokens, of which a sample has so many on average; `noise` is that of one token, if tokens were independent.

        >>> NoiseEstimate(912.3, 702.0, 1204.0, 1.0, 912.3, 400).in_tokens(128).in_words()
        '120,000 [90,000, 150,000]'
        """
        k = tokens_per_sample
        return self._replace(noise_scale=k * self.noise_scale, lower=k * self.lower, upper=k * self.upper, noise=k * self.noise)

    def in_words(self) -> str:
        """The value to two digits, with its interval.

        >>> NoiseEstimate(912.3, 702.0, 1204.0, 1.0, 912.3, 400).in_words()
        '910 [700, 1,200]'
        >>> NoiseEstimate(float("nan"), 480.0, float("inf"), -0.1, 912.3, 400).in_words()
        'at least 480'
        >>> NoiseEstimate(0.75, 0.0, float("inf"), 5.3, 4.0, 48).in_words()
        '0.75 [0, no upper bound]'
        """
        if self.noise == self.signal == 0:
            return "no noise scale: every gradient is zero"
        if self.noise_scale == 0 and self.upper == 0:
            return "0: the gradients of all samples are equal"
        if math.isinf(self.upper) and self.lower == 0 and not math.isnan(self.noise_scale):
            return f"{two_digits(self.noise_scale)} [{two_digits(self.lower)}, no upper bound]"
        if math.isinf(self.upper):
            return f"at least {two_digits(self.lower)}" if self.lower > 0 else "no signal yet: any batch is possible"
        if math.isnan(self.noise_scale):
            return "no signal above the noise"
        bounds = "" if math.isnan(self.lower) else f" [{two_digits(self.lower)}, {two_digits(self.upper)}]"
        return two_digits(self.noise_scale) + bounds


def estimate(signals: Sequence[float], noises: Sequence[float], *, confidence: float = 0.95) -> NoiseEstimate:
    """Ratio of means over updates, with an interval.

    Args:
        signals: |G|^2 of each update, unbiased, in the order in time; NaN or infinite where an update tells nothing.
        noises: tr(S) of each.
        confidence: Of the two-sided interval.

    Returns:
        The estimate.

    Raises:
        UserError: If no update tells anything.

    >>> str(estimate([1.0, 1.1, 0.9, 1.0, float("nan")], [800.0, 810.0, 805.0, 790.0, 1.0]))
    '800 [710, 920] (4 updates, 1 skipped)'
    """
    values = np.array([signals, noises], dtype=float).reshape(2, -1)
    usable = values[:, np.isfinite(values).all(axis=0)]
    num_skipped = values.shape[1] - usable.shape[1]
    if not usable.shape[1]:
        raise UserError(
            f"{values.shape[1]} updates, none of which tells signal from noise: each must have at least two micro-batches (or ranks) and "
            "finite gradients; lower micro_batch"
        )
    interval = ratio_of_means(usable[1], usable[0], confidence=confidence)
    signal, noise = usable.mean(axis=1).tolist()
    doubt = doubt_of(usable[1], usable[0])
    return NoiseEstimate(*interval, signal, noise, usable.shape[1], num_skipped, doubt)


def two_digits(value: float) -> str:
    """A number of samples, rounded to what is worth saying.

    >>> [two_digits(v) for v in (0.5, 7.34, 912.0, 12345.0)]
    ['0.5', '7.3', '910', '12,000']
    """
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
