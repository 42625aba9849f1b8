r"""Churn: workers are lost and replaced. What share of the time is left for updates that count.

Source:  Daly 2006, A Higher Order Estimate of the Optimum Checkpoint Interval for Restart Dumps, FGCS 22(3), Section 3: the first formula.
Model:   a worker is lost after an exponential time of mean M, whatever the others do; n workers: one is lost every M/n. R seconds later
         (noticed, replaced, weights fetched) work goes on with as many as before. P: seconds from one exchange to the next, without losses.
Formula: goodput, P over the expected seconds in which as much is done,
         all stop, all do the period again      P / ((M/n + R) (exp(n P/M) - 1))             about 1 / (1 + (R + P/2) n/M)
         only the lost one does, nobody waits   P / ((M + R) (exp(P/M) - 1))
         its share is left out, others wait R   exp(-g P/M)  x / (x + R (1 - exp(-n x/M)))   x = P/F
             at the next of F exchanges of a period, however many were lost; a host of g workers falls out with each of them
Units:   seconds.
Differs: nothing is lost during R (Daly: R may fail, too). No checkpoints are written; the others' weights are the copy.
"""

import math

from bigbatch.core.checks import UserError, check_positive

LONGEST = 20.0
"""Of n P/M: a period that long is done in one of exp(20) tries. It is taken for one that never ends: goodput 0."""


def redone(period_s: float, *, lost_every_s: float, recovery_s: float) -> float:
    """Goodput where a loss in a period means to do it again.

    Args:
        period_s: P.
        lost_every_s: Mean seconds between losses of one of those that stop: M/n where all do.
        recovery_s: R.

    Raises:
        UserError: If an argument is out of range.

    >>> round(redone(60.0, lost_every_s=6000.0, recovery_s=30.0), 4)  # about 1 / (1 + (30 + 30) / 6000)
    0.9901
    """
    _check(period_s, lost_every_s, recovery_s)
    losses = period_s / lost_every_s
    if losses > LONGEST:
        return 0.0
    return losses / ((1 + recovery_s / lost_every_s) * math.expm1(losses))


def left_out(period_s: float, *, workers: int, lost_every_s: float, recovery_s: float, exchanges: int = 1, together: int = 1) -> float:
    """Goodput where the period of a lost worker is left out, and others wait for it once.

    Args:
        period_s: P.
        workers: n.
        lost_every_s: M, of one worker.
        recovery_s: R.
        exchanges: F, of a period.
        together: g, workers whose period is left out with each.

    Raises:
        UserError: If an argument is out of range.

    >>> round(left_out(60.0, workers=10, lost_every_s=6000.0, recovery_s=30.0), 4)  # exp(-0.01) 60 / (60 + 30 (1 - exp(-0.1)))
    0.9451
    """
    _check(period_s, lost_every_s, recovery_s)
    for name, value in (("workers", workers), ("exchanges", exchanges), ("together", together)):
        if value < 1:
            raise UserError(f"{name} = {value}: must be 1 or more; give how many there are")
    between_s = period_s / exchanges
    waited_s = -recovery_s * math.expm1(-workers * between_s / lost_every_s)
    return math.exp(-together * period_s / lost_every_s) * between_s / (between_s + waited_s)


def _check(period_s: float, lost_every_s: float, recovery_s: float) -> None:
    check_positive("period_s", period_s)
    check_positive("lost_every_s", lost_every_s)
    if not 0 <= recovery_s < math.inf:
        raise UserError(f"recovery_s = {recovery_s}: must be zero or above; give the seconds from a loss until work goes on")
