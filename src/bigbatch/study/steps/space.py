"""What is searched: ranges of a recipe's fields, the quasi-random points in them, and whether the best of them lies at an edge."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from bigbatch.core.checks import UserError
from bigbatch.recipe import Recipe
from bigbatch.study.constant_rate import rates_of

LR, MOMENTUM, LENGTH = "optimizer.lr", "optimizer.momentum", "budget.updates"
LR_REACH = 16.0
"""Of the first range of rates, to both sides of the square-root rule's."""
ONE_MINUS_MOMENTUM = (0.003, 1.0)
"""Range of 1 - momentum: from 0.997 down to none."""
EDGE = 0.1
"""Part of a range, at each of its ends, in which a best value counts as at the edge."""


def value_text(value: Any) -> str:
    """A searched value for people.

    >>> value_text(0.123456), value_text(1248), value_text("cosine")
    ('0.123', '1,248', 'cosine')
    """
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


class Range(NamedTuple):
    """Values between two bounds.

    On "log", as many in each octave; on "log of 1 - value", as momenta are searched, 1 - value is; on "linear", as many in each interval.
    """

    field: str  # dotted
    low: float
    high: float
    scale: Literal["log", "log of 1 - value", "linear"] = "log"

    def at(self, place: float) -> float:
        """The value at a place in [0, 1].

        >>> Range("optimizer.lr", 0.01, 1).at(0.5), round(Range("optimizer.momentum", 0, 0.99, "log of 1 - value").at(0.5), 9)
        (0.1, 0.9)
        """
        found = self._value(self._ends[0] + place * self.width)
        return round(found) if self.is_whole else float(f"{found:.6g}")

    def place(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        return (self._coordinate(value) - self._ends[0]) / self.width

    @property
    def is_whole(self) -> bool:
        """Whether values are whole numbers."""
        return self.field == LENGTH

    @property
    def width(self) -> float:
        """On its scale: an octave is log 2."""
        low, high = self._ends
        return high - low

    def beyond(self, side: int, width: float) -> "Range | None":
        """The range of a width next to this one, below (-1) or above (1); None where no values lie there."""
        low, high = self._ends
        ends = (low - width, low) if side < 0 else (high, high + width)
        values = [self._value(end) for end in ends]
        if self.scale != "log":
            values = [max(value, 0.0) for value in values]
        return self._replace(low=values[0], high=values[1]) if values[1] > values[0] else None

    @property
    def _ends(self) -> tuple[float, float]:
        return self._coordinate(self.low), self._coordinate(self.high)

    def _coordinate(self, value: float) -> float:
        if self.scale == "linear":
            return value
        return math.log(value) if self.scale == "log" else -math.log1p(-value)

    def _value(self, coordinate: float) -> float:
        if self.scale == "linear":
            return coordinate
        return math.exp(coordinate) if self.scale == "log" else -math.expm1(-coordinate)


class Choice(NamedTuple):
    """Some values, such as of label smoothing."""

    field: str  # dotted
    values: tuple[Any, ...]

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1)."""
        return self.values[min(int(place * len(self.values)), len(self.values) - 1)]


Space = tuple[Range | Choice, ...]


def default_space(recipe: Recipe) -> Space:
    """The rate, and the momentum of an optimizer that has one above zero."""
    lr = recipe.optimizer.lr
    rate = Range(LR, lr / LR_REACH, lr * LR_REACH)
    if not recipe.get(MOMENTUM):
        return (rate,)
    least, most = ONE_MINUS_MOMENTUM
    return rate, Range(MOMENTUM, 1 - most, 1 - least, "log of 1 - value")


def parse(text: str) -> Range | Choice:
    """A range from FIELD=LOW:HIGH[:linear] or FIELD=VALUE|VALUE|...; momenta are on the log of 1 - momentum, others on the log.

    Raises:
        UserError: If it is neither.

    >>> parse("optimizer.weight_decay=1e-5:1e-2")
    Range(field='optimizer.weight_decay', low=1e-05, high=0.01, scale='log')
    """
    field, equals, values = text.partition("=")
    what = f"--search {text}"
    if not equals or "." not in field:
        raise UserError(f"{what}: must be FIELD=LOW:HIGH or FIELD=VALUE|VALUE, such as optimizer.lr=0.01:1")
    if "|" in values:
        return Choice(field, tuple(_number(what, value) for value in values.split("|")))
    low, *more = values.split(":")
    if len(more) not in (1, 2) or more[1:] not in ([], ["linear"], ["log"]):
        raise UserError(f"{what}: must be FIELD=LOW:HIGH, or FIELD=LOW:HIGH:linear")
    scale: Any = more[1] if more[1:] else "log of 1 - value" if field == MOMENTUM else "log"
    made = Range(field, _number(what, low), _number(what, more[0]), scale)
    in_domain = {"log": made.low > 0, "log of 1 - value": made.low >= 0 and made.high < 1, "linear": True}[made.scale]
    if not (made.low < made.high < math.inf and in_domain):
        raise UserError(f"{what}: a range on {made.scale} must have LOW below HIGH, and both where that is defined")
    return made


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{what}: {text!r} is no number") from None


def applied(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with values of searched fields; all its rates change with `optimizer.lr`."""
    changes = dict(values)
    if LR in changes:
        factor = changes[LR] / recipe.get(LR)
        changes |= {name: factor * recipe.get(name) for name in rates_of(recipe) if name != LR}
    return recipe.replace(changes)


@lru_cache(maxsize=256)
def sobol(number: int, dimensions: int, seed: int) -> tuple[float, ...]:
    """The point of a number, from 0 on, of a scrambled Sobol sequence in [0, 1)^dimensions."""
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    return tuple(float(x) for x in sequence.random(1)[0])


class Edge(NamedTuple):
    """Where the best value lies at an end of what was searched."""

    range: Range  # next to that end
    position: int  # of the field in the space


def at_edge(searched: Sequence[Space], best: Mapping[str, Any]) -> Edge | None:
    """The first field whose best value lies at an end of all its ranges together; None where none does, or nothing lies beyond.

    Args:
        searched: The spaces so far, of the same fields; the first is the widest.
        best: Values by field.
    """
    for index, first in enumerate(searched[0]):
        if isinstance(first, Range):
            ranges = [space[index] for space in searched]
            whole = first._replace(low=min(r.low for r in ranges), high=max(r.high for r in ranges))  # type: ignore[union-attr]
            place = whole.place(best[first.field])
            side = (place > 1 - EDGE) - (place < EDGE)
            beyond = whole.beyond(side, first.width / 2) if side else None
            if beyond is not None:
                return Edge(beyond, index)
    return None
