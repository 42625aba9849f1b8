r"""Step decay: times a factor at each milestone.

Formula: factor(s) = gamma^(number of milestones m with m <= s).
Units:   milestones in samples.
"""

from collections.abc import Sequence

from bigbatch.core.checks import check_fraction
from bigbatch.core.clock import Clock


def step_decay(clock: Clock, *, milestones: Sequence[float], factor: float = 0.1) -> float:
    """Fraction of the peak rate.

    Args:
        clock: Where the run stands before the update.
        milestones: Samples at which the rate drops, in any order.
        factor: What each drop multiplies by, in [0, 1].

    Returns:
        A power of `factor`.

    Raises:
        UserError: If `factor` is not in [0, 1].

    >>> [step_decay(Clock(samples=s), milestones=[100, 200], factor=0.5) for s in (99, 100, 200)]
    [1.0, 0.5, 0.25]
    """
    check_fraction("factor", factor)
    return float(factor ** sum(clock.samples >= m for m in milestones))
