"""What a score is: its name and unit, whether higher or lower is better, and how much may be lost without calling it a loss.

All that prints, plots or ranks scores asks the task's metric. Tests over seeds know none of this: they take `Metric.comparable` scores,
of which larger are better, and `Metric.difference` turns what they find back into what people read.
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any, Literal

from bigbatch.core.checks import UserError, check_positive


@dataclass(frozen=True)
class Metric:
    """The mean of a task's scores over a data set.

    Attributes:
        name: Such as "accuracy" or "loss".
        unit: Such as "%", "nats" or "bits per token"; empty for a bare number.
        better: Which scores are better.
        margin: Largest loss that counts as none, in `unit`; of a `relative` one, a share of the reference's score, such as 0.01.
        relative: Whether scores are compared by their ratio. They must be positive, and are compared by their logarithms.
        scale: A score times `scale` is in `unit`: 100 for shares of samples shown in per cent.
        decimals: Digits shown after the point; as many as show a fiftieth of the margin if left out, 2 of a relative one.

    Raises:
        UserError: If a value is out of range.

    >>> loss = Metric("loss", "nats", "lower", margin=0.01)
    >>> loss.text(0.34567), loss.is_better(0.3, 0.4), loss.label
    ('0.346 nats', True, 'loss, nats')
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    _: KW_ONLY
    margin: float
    relative: bool = False
    scale: float = 1.0
    decimals: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not isinstance(self.unit, str):
            raise UserError(f"metric name = {self.name!r}, unit = {self.unit!r}: must be texts, the name not empty")
        if self.better not in ("higher", "lower"):
            raise UserError(f'metric {self.name}: better = {self.better!r}: must be "higher" or "lower"')
        if not isinstance(self.relative, bool):
            raise UserError(f"metric {self.name}: relative = {self.relative!r}: must be true or false")
        self._check_margin(f"metric {self.name}: margin", self.margin)
        check_positive(f"metric {self.name}: scale", self.scale)
        if self.decimals is not None and not (isinstance(self.decimals, int) and 0 <= self.decimals <= 12):
            raise UserError(f"metric {self.name}: decimals = {self.decimals!r}: must be a whole number from 0 to 12; 2 is usual")

    def __str__(self) -> str:
        return self.name

    # what people read

    @property
    def label(self) -> str:
        """Name and unit, for an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def is_share(self) -> bool:
        """Whether scores are shares of samples, in [0, 1], shown in per cent."""
        return self.unit == "%" and self.scale == 100

    def shown(self, score: float) -> float:
        """A score in `unit`.

        >>> ACCURACY.shown(0.895)
        89.5
        """
        return self.scale * score

    def number(self, value: float) -> str:
        """A value in `unit`, without it.

        >>> ACCURACY.number(89.5)
        '89.50'
        """
        return f"{value:.{self._decimals}f}"

    def check_share(self, score: float) -> None:
        """Refuse a score that can't be a share of samples, of a metric whose scores are.

        Raises:
            UserError: With what to state instead.
        """
        if self.is_share and score > 1 + 1e-9:
            raise UserError(
                f"score = {score:g}: is above 1, and {self} is a share of samples; where it is told in per cent, state "
                f'metric = {{ name = "{self}", unit = "%", better = "{self.better}", margin = {self.margin:g} }}; '
                "where it is no share, its own unit"
            )

    def text(self, score: float) -> str:
        """A score with its unit.

        >>> ACCURACY.text(0.895), Metric("reward", margin=5).text(-12.34)
        ('89.50 %', '-12.3')
        """
        return self.with_unit(self.number(self.shown(score)))

    def exact(self, score: float) -> str:
        """A score that somebody chose, such as a target, with as many digits as it has.

        >>> ACCURACY.exact(0.9)
        '90 %'
        """
        return self.with_unit(f"{self.shown(score):g}")

    def with_unit(self, text: str) -> str:
        """A number in words with the unit behind it."""
        return f"{text} {self.unit}".rstrip()

    # better and worse

    def is_better(self, score: float, than: float) -> bool:
        """Whether a score is better than another, of which infinities and NaN stand for none yet.

        >>> ACCURACY.is_better(0.1, -math.inf), ACCURACY.is_better(math.nan, -math.inf)
        (True, False)
        """
        return math.isfinite(score) and (not math.isfinite(than) or self._sign * score > self._sign * than)

    def reaches(self, score: float, target: float) -> bool:
        """Whether a score is as good as the target, or better."""
        return math.isfinite(score) and self._sign * score >= self._sign * target

    def rank(self, score: float | None) -> float:
        """Sorts scores, the best first; what is no finite number last.

        >>> sorted([0.7, None, 0.9], key=ACCURACY.rank)
        [0.9, 0.7, None]
        """
        return -self._sign * score if score is not None and math.isfinite(score) else math.inf

    @property
    def of_diverged(self) -> float:
        """What a diverged run counts where settings are searched: the worst score there is."""
        if self.is_share:
            return 0.0 if self.better == "higher" else 1.0
        return -self._sign * math.inf

    @property
    def easier(self) -> str:
        """What makes a target easier to reach: to "lower" it, or to "raise" it."""
        return "lower" if self.better == "higher" else "raise"

    @property
    def harder(self) -> str:
        """What makes a target harder to reach."""
        return "raise" if self.better == "higher" else "lower"

    @property
    def worse_side(self) -> str:
        """Where worse scores lie: "below", or "above"."""
        return "below" if self.better == "higher" else "above"

    def check_target(self, target: float) -> None:
        """Refuse a target that no score can have.

        Raises:
            UserError: If it is not finite, or outside (0, 1] where scores are shares of samples.
        """
        if self.is_share and not (0 < target <= 1 if self.better == "higher" else 0 <= target < 1):
            ends = "above 0 and up to 1; 88 % is 0.88" if self.better == "higher" else "from 0 on and below 1; 12 % is 0.12"
            raise UserError(f"target = {target}: must be a validation score {ends}")
        if not math.isfinite(target):
            raise UserError(f"target = {target}: must be a finite validation score ({self.label})")

    # what tests over seeds take and give

    def comparable(self, score: float) -> float:
        """A score for a test: larger is better, in `unit`; its natural logarithm where the margin is relative, NaN of one not above 0.

        >>> ACCURACY.comparable(0.9), Metric("loss", "nats", "lower", margin=0.01).comparable(0.3)
        (90.0, -0.3)
        """
        if not self.relative:
            return self._sign * self.shown(score)
        return self._sign * math.log(score) if score > 0 else math.nan

    def comparable_margin(self, margin: float | None = None) -> float:
        """The margin, or another one stated as it, as a difference of comparable scores.

        Raises:
            UserError: If it is not positive, or relative and all of the score.

        >>> round(Metric("perplexity", better="lower", margin=0.01, relative=True).comparable_margin(), 6)
        0.00995
        """
        stated = self.margin if margin is None else margin
        self._check_margin("margin", stated)
        return self._sign * -math.log1p(-self._sign * stated) if self.relative else stated

    def stated_margin(self, margin: float) -> float:
        """The inverse of `comparable_margin`."""
        return abs(math.expm1(-self._sign * margin)) if self.relative else margin

    @property
    def resolution_of_a_sample(self) -> float:
        """How far one sample moves a comparable score, times the number of samples; 0 where it can move it by any amount."""
        return self.scale if self.is_share and not self.relative else 0.0

    def difference(self, comparable: float) -> float:
        """A difference of comparable scores as people read it: in `unit`, per cent where relative; above 0 where scores are higher.

        >>> Metric("loss", "nats", "lower", margin=0.01).difference(-0.02)
        0.02
        >>> round(Metric("perplexity", better="lower", margin=0.01, relative=True).difference(-0.00995), 2)
        1.0
        """
        return (100 * math.expm1(self._sign * comparable) if self.relative else self._sign * comparable) + 0.0  # no -0

    def interval(self, lower: float | None, upper: float | None) -> tuple[float | None, float | None]:
        """The ends of an interval of a difference of comparable scores, as `difference`, in rising order; None for no end."""
        ends = [None if end is None else self.difference(end) for end in (lower, upper)]
        return (ends[0], ends[1]) if self.better == "higher" else (ends[1], ends[0])

    def in_words(self, comparable: float) -> str:
        """A difference of comparable scores, with its unit and of what it is one.

        >>> ACCURACY.in_words(-1.25), Metric("loss", "nats", "lower", margin=0.01).in_words(-0.02)
        ('-1.25 points of accuracy', '+0.020 nats of loss')
        """
        return " ".join(part for part in (self.signed(self.difference(comparable)), self.difference_unit, "of", self.name) if part)

    def signed(self, difference: float) -> str:
        """A `difference`, with its sign and no unit."""
        return f"{difference:+.{2 if self.relative else self._decimals}f}"

    @property
    def difference_unit(self) -> str:
        """Unit of a `difference`: "points" where scores are in per cent."""
        return "%" if self.relative else "points" if self.unit == "%" else self.unit

    def length(self, comparable: float, *, digits: int = 6) -> str:
        """A length on the scale of comparable scores, such as a margin or a spread, in words.

        >>> ACCURACY.length(0.5), Metric("perplexity", better="lower", margin=0.01, relative=True).length(0.00995, digits=2)
        ('0.5 points', '1 %')
        """
        value = 100 * self.stated_margin(comparable) if self.relative else comparable
        return f"{value:.{digits}g} {self.difference_unit}".rstrip()

    # as stored

    @property
    def is_named(self) -> bool:
        """Whether `metric_of` makes it of its name alone."""
        return self == _share(self.name)

    def to_plain(self) -> str | dict[str, Any]:
        """What files hold: the name where that is all, else all fields."""
        return self.name if self.is_named else asdict(self)

    @property
    def _sign(self) -> int:
        return 1 if self.better == "higher" else -1

    @property
    def _decimals(self) -> int:
        if self.decimals is not None:
            return self.decimals
        return 2 if self.relative else min(max(0, 1 + math.ceil(-math.log10(self.margin))), 12)

    def _check_margin(self, what: str, margin: float) -> None:
        check_positive(what, margin)
        if self.relative and self.better == "higher" and margin >= 1:
            raise UserError(f"{what} = {margin}: is relative, and all of the score or more; give a share below 1, such as 0.01")


ACCURACY = Metric("accuracy", "%", margin=0.5, scale=100.0)
"""Shares of right answers, in per cent: what a metric is that has only a name."""


NO_SHARES = {"loss", "mse", "rmse", "mae", "nll", "bpb", "bpc", "perplexity", "ppl", "cross_entropy", "cross-entropy", "error"}
"""Names of scores that are no shares of samples of which more is better: alone they say too little."""


def _share(name: str) -> Metric:
    return Metric(name, ACCURACY.unit, margin=ACCURACY.margin, scale=ACCURACY.scale)


def metric_of(stated: object) -> Metric:
    """The metric that a task states, or that a file holds.

    Args:
        stated: A metric, its fields as a mapping, of which unknown ones are left out, or a name alone: then it is like `ACCURACY`.

    Raises:
        UserError: If it is something else, or a field is out of range.

    >>> metric_of("F1").text(0.5), metric_of({"name": "loss", "unit": "nats", "better": "lower", "margin": 0.01}).better
    ('50.00 %', 'lower')
    """
    if isinstance(stated, Metric):
        return stated
    if isinstance(stated, str):
        if stated.lower() in NO_SHARES:
            raise UserError(
                f"metric = {stated!r}: a name alone is a share of samples of which more is better, as accuracy; state "
                f'Metric({stated!r}, better="lower", margin=...) with what may be lost'
            )
        return _share(stated)
    if not isinstance(stated, Mapping):
        raise UserError(f"metric = {stated!r:.60}: must be a name, or a Metric with its unit, direction and margin")
    try:
        return Metric(**{field.name: stated[field.name] for field in fields(Metric) if field.name in stated})
    except TypeError as error:
        raise UserError(f"metric = {dict(stated)!r:.120}: {error}") from None
