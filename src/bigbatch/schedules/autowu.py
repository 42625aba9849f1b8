r"""AutoWU: the rate grows until the training loss turns, goes back to where the loss was lowest, and decays.

Paper:   Kim et al. 2021, Automated Learning Rate Scheduler for Large-batch Training, arXiv:2107.05855.
Formula: warm-up, with the clock s and the whole run S in samples:  factor(s) = f0^(1 - s / (rho S)),  f0 = 1e-5, rho = 1/2.
         The losses y_i of the warm-up so far at x_i = s_i / s_now are a Gaussian process: y = m + f(x) + noise, with
             cov(f(x), f(x')) = a exp(-(x - x')^2 / (2 l^2)),  l = 0.2, and noise of an AR(1) process (gaussian_process.py).
         A test finds a minimum if P(max_i (f(1) - f(x_i)) > 0) > 0.95 over 200 places x_i, from the Gaussian of the difference,
         1e-4 added to its variance; 3 tests in a row make the switch. Then the rate is factor(x* s_now), x* where the posterior
         mean is lowest, and decays to 0: by a cosine over the rest of the run, or it stays ("constant_cosine") and falls by a
         cosine over the last fifth of the run.
Units:   s, S in samples; losses in their own unit, divided by their root mean square, so that 1e-4 is a hundredth of a loss, squared.
Differs: tests every S/120 samples, not every epoch, and patience in tests, so that short runs work.
         The noise may be autocorrelated, and its correlation and its share of the variance are averaged over by their likelihood; the
         paper has white noise and the one best share, and so takes slow waves of the loss for minima: under AR(1) noise of correlation
         0.9 it ends most warm-ups within a tenth of the run (benchmarks/autowu_false_minima.py compares both). A test
         takes the means of losses over at most 32 equal parts of the warm-up so far: in them white noise on top of the waves averages out,
         and nothing is drawn; the paper fits a draw of 100, and five draws of 500 vote, at 500 places.
         A minimum counts only if the loss *fell* first, with the same confidence: 3 tests in a row on noise alone would end the warm-up
         at its beginning. Losses above all of the first 10 are cut there: an explosion must not bend the whole curve. No test before
         10 losses.
         Half-way, or at a loss that is not finite, the switch comes all the same, and goes back to x* too; the released code starts
         its decay from the rate reached, 1.0, and leaves such losses out. Its half cosine starts at half the rate, ours at all of it.
         A loss that probably never fell (P < 0.8, or 0.6 at a loss that is not finite) has no minimum to go back to, and where its
         mean is lowest is chance. Flat, it goes on at the peak: no rate did harm, and a higher one is more likely to help. Risen from
         the start, it goes on at the largest rate before a rise was likely, by losses that are cut far higher. Not finite then, at a
         tenth of the last rate, or less if it rose earlier. The reason of the switch says so.
         (Ours, off unless it is used: kept.py also returns to the weights of the minimum. The paper only sets the rate back.)
Limits:  the loss must mean the same throughout: no label smoothing or mixing that is switched on or off meanwhile. Noise alone ends
         none to one in twenty of warm-ups early, and one in ten to eight where a warm-up of 100 updates has waves that last for 10 to 50
         of them (correlation 0.9 and 0.98): few waves can't be told from a curve. Where losses scatter as much as they fall and rise, the
         minimum may be sure only half-way: the rate goes back to it then.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from bigbatch.core.checks import Diverged, UserError, check_positive, unknown
from bigbatch.core.clock import Clock
from bigbatch.core.paper import Paper
from bigbatch.schedules.cosine import cosine
from bigbatch.schedules.loss_curve import LIKELY, MIN_LOSSES, judge

PAPER = Paper(
    method="AutoWU",
    title="Automated Learning Rate Scheduler for Large-batch Training",
    authors="Kim et al.",
    year=2021,
    arxiv="2107.05855",
    where="warm-up and decay, and the released code",
    study="studies/autowu",
)
RATHER = 0.6  # of having fallen, in place of LIKELY, at a loss that is not finite, where a rate too high would cost the run
COOLDOWN = 0.2  # of the run, at its end, in which "constant_cosine" decays
Decay = Literal["cosine", "constant_cosine"]
Shape = Literal["fell", "flat", "rose"]  # likely fell at some place; else: likely never moved, or only rose


def growth(progress: float, grow_from: float) -> float:
    """Fraction of the peak rate at a part of the warm-up: f0^(1 - progress), at most 1.

    >>> [round(growth(part, 1e-4), 9) for part in (0, 0.5, 1, 2)]
    [0.0001, 0.01, 1.0, 1.0]
    """
    return float(grow_from ** (1 - min(1.0, progress)))


class Judgement(NamedTuple):
    """Outcome of a test."""

    found: bool  # whether the loss has its minimum behind it
    factor: float  # of the peak rate, at the place to go back to
    minimum: float  # that place, samples: the minimum, where there is one
    lowest: float  # where the loss was lowest on average, samples: by chance, if it never fell
    shape: Shape


class Switch(NamedTuple):
    """The end of the warm-up."""

    samples: int  # on the clock of the last update of the warm-up
    factor: float  # of the peak rate, from which it decays
    minimum: float  # where that was the rate, samples: where the loss was lowest, if it fell
    reason: str


class AutoWU:
    """The schedule: a function of the clock, like the others, that learns from losses during its warm-up.

    In a loop of your own: `observe` after each update. In several processes: all `add_loss` the mean loss over all; where it is `due`, the
    first makes a `judgement`, and all `adopt` it.

    A loss that is not finite ends the warm-up at once; the weights are then lost too, unless kept.py has earlier ones. Where the loss
    never fell, the switch goes to a rate that did no harm, and its reason says what to change. A run of 50
    updates is tested after each of its updates 10 to 26; one of fewer than 20 at half of it only.

    Args:
        total_samples: S, of the run.
        grow_from: f0, of the peak rate. The paper's peak is 1, so its rate starts at 1e-5.
        share: rho, of the run: the longest warm-up.
        decay: From the switch on.
        tests: In the whole run, but one after an update at most.
        patience: Tests in a row that must find a minimum.
        confidence: Probability above which a test finds a minimum.

    Attributes:
        switch: How the warm-up ended; None during it.
        minimum: Up to where weights may still be wanted, by the last test, samples: where the loss was lowest, or earlier.

    Raises:
        UserError: If an argument is out of range.

    >>> autowu, clock, rates = AutoWU(total_samples=10_000, grow_from=1e-4), Clock(), []
    >>> while clock.samples < 10_000:
    ...     rates.append(autowu(clock))
    ...     _ = autowu.observe(clock, loss=1 + (math.log10(rates[-1]) + 1) ** 2)  # lowest at a tenth of the peak
    ...     clock = clock.after(100)
    >>> autowu.switch.reason, round(autowu.switch.factor, 2), round(max(rates), 2), round(rates[-1], 4)
    ('the loss has turned', 0.1, 0.28, 0.0001)
    """

    def __init__(
        self,
        *,
        total_samples: int,
        grow_from: float = 1e-5,
        share: float = 0.5,
        decay: Decay = "cosine",
        tests: int = 120,
        patience: int = 3,
        confidence: float = 0.95,
    ) -> None:
        for name, count in {"total_samples": total_samples, "tests": tests, "patience": patience}.items():
            check_positive(name, count, "give a whole number above zero")
        for name, value, usual in (("grow_from", grow_from, 1e-5), ("share", share, 0.5), ("confidence", confidence, 0.95)):
            if not 0 < value < 1:
                raise UserError(f"{name} = {value}: must lie between 0 and 1; the paper's is {usual:g}")
        if decay not in get_args(Decay):
            raise UserError(unknown("decay", decay, get_args(Decay)))
        self.switch: Switch | None = None
        self.minimum = 0.0
        self._total, self._start, self._share, self._decay = total_samples, grow_from, share, decay
        self._tests, self._patience, self._confidence = tests, patience, confidence
        self._samples: list[int] = []
        self._losses: list[float] = []
        self._tested = self._streak = 0
        self._lost = False

    def __call__(self, clock: Clock) -> float:
        """Fraction of the peak rate, for the update at the clock."""
        if self.switch is None:
            return self._growth(clock.samples)
        begin = max(self.switch.samples, round((1 - COOLDOWN) * self._total) if self._decay == "constant_cosine" else 0)
        return self.switch.factor * cosine(Clock(max(0, clock.samples - begin)), total_samples=max(1, self._total - begin))

    def observe(self, clock: Clock, loss: float) -> Switch | None:
        """`add_loss`, and a test where one is due; returns the switch, if it comes with this update. Raises Diverged as `add_loss`."""
        self.add_loss(clock, loss)
        return self.adopt(clock, self.judgement()) if self.due(clock) else None

    def add_loss(self, clock: Clock, loss: float) -> None:
        """Take notice of the mean loss of an update; `clock` is the one that its rate was set by.

        Raises:
            Diverged: If the loss is not finite and fewer than 10 were seen before: there is nothing to go back to.
        """
        if self.switch is None and math.isfinite(loss):
            self._samples.append(clock.samples)
            self._losses.append(float(loss))
        elif self.switch is None:
            self._lost, update = True, clock.updates + 1
            if len(self._losses) < MIN_LOSSES:
                raise Diverged(f"loss = {loss} at update {update}: AutoWU has seen too few; lower grow_from", update=update)

    def due(self, clock: Clock) -> bool:
        """Whether to test after the update at the clock: a matter of the clock, unless a loss was seen that is not finite."""
        return self.switch is None and (self._lost or self._is_half_way(clock) or self._number(clock) > self._tested)

    def judgement(self) -> Judgement:
        """Test the losses seen so far."""
        num, last = len(self._losses), self._samples[-1]
        x = np.asarray(self._samples, float) / max(last, 1)
        curve = judge(x, self._losses, rises=self._lost or last >= self._share * self._total)
        least = RATHER if self._lost else LIKELY
        shape: Shape = "fell" if curve.fell > least else "flat" if curve.harmless >= 1 else "rose"
        place = last * (curve.lowest if shape == "fell" else curve.harmless)
        if self._lost and shape != "fell":
            tenth = self._share * self._total * math.log(10) / -math.log(self._start)  # samples in which the rate grows by 10
            place = min(place, max(0.0, last - tenth))
        return Judgement(curve.turned > self._confidence and num >= MIN_LOSSES, self._growth(place), place, last * curve.lowest, shape)

    def adopt(self, clock: Clock, judgement: Judgement) -> Switch | None:
        """Take up what a test found after the update at the clock; the switch, if it is time."""
        self._tested, self.minimum = self._number(clock), min(judgement.minimum, judgement.lowest)
        self._streak = self._streak + 1 if judgement.found else 0
        if not self._lost and self._streak >= self._patience:
            reason = "the loss has turned"
        elif self._lost or self._is_half_way(clock):
            reason = "the loss is not finite" if self._lost else f"{self._share:g} of the run is over"
            reason += _why(judgement, lost=self._lost)
        else:
            return None
        self.switch = Switch(clock.samples, judgement.factor, judgement.minimum, reason)
        self._samples, self._losses = [], []
        return self.switch

    def state_dict(self) -> dict[str, Any]:
        """Plain values: goes into the checkpoint."""
        seen = {"samples": list(self._samples), "losses": list(self._losses), "lost": self._lost}
        switch = list(self.switch) if self.switch is not None else None
        return {**seen, "tested": self._tested, "streak": self._streak, "minimum": self.minimum, "switch": switch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._samples, self._losses, self._lost = list(state["samples"]), list(state["losses"]), state["lost"]
        self._tested, self._streak, self.minimum = state["tested"], state["streak"], state["minimum"]
        self.switch = None
        if state["switch"] is not None:
            samples, factor, minimum, reason = state["switch"]
            self.switch = Switch(int(samples), float(factor), float(minimum), str(reason))

    def _growth(self, samples: float) -> float:
        return growth(samples / (self._share * self._total), self._start)

    def _is_half_way(self, clock: Clock) -> bool:
        return clock.samples >= self._share * self._total

    def _number(self, clock: Clock) -> int:
        """Of the last test that is due by the clock."""
        return clock.samples * self._tests // self._total


def _why(judgement: Judgement, *, lost: bool) -> str:
    """What the curve of the losses was, and what to change, after the reason of a switch that no minimum made."""
    if judgement.shape == "fell":
        return "" if lost else "; the loss fell and had not surely turned"
    if judgement.shape == "rose":
        return f"; the loss never fell and rose above {judgement.factor:.2g} of the peak rate: lower the peak rate"
    if lost:
        return "; the loss had not fallen before: lower the peak rate, or raise the share of the warm-up"
    return "; the loss neither fell nor rose: raise the peak rate, or see whether the model can learn at all"
