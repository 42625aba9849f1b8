"""Exponential running mean with the start-up bias taken out."""

from typing import NamedTuple

from bigbatch.core.checks import check_fraction


class RunningMean(NamedTuple):
    """State of the mean; `update` returns the next state and changes nothing.

    m_t = decay m_{t-1} + (1 - decay) x_t from m_0 = 0, and value_t = m_t / (1 - decay^t): unbiased from the first value on.

    >>> mean = RunningMean(decay=0.9).update(4.0)
    >>> mean.value
    4.0
    >>> round(mean.update(2.0).value, 4)  # (0.9 * 0.1 * 4 + 0.1 * 2) / (1 - 0.81)
    2.9474
    """

    decay: float
    biased: float = 0.0  # m_t
    weight: float = 0.0  # 1 - decay^t, the total weight of what was seen

    def update(self, value: float) -> "RunningMean":
        """The mean after one more value.

        Raises:
            UserError: If `decay` is not in [0, 1].
        """
        check_fraction("decay", self.decay)
        d = self.decay
        return RunningMean(d, d * self.biased + (1 - d) * value, d * self.weight + (1 - d))

    @property
    def value(self) -> float:
        """The unbiased mean; NaN before the first value."""
        return self.biased / self.weight if self.weight else float("nan")
