"""Runs of a loop, each made once, and what removes their deviation."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bigbatch.check.arrangement import SUSPECTS, WHOLE, Arrangement, Setup
from bigbatch.check.compare import TOLERANCE, Deviation, worst
from bigbatch.check.processes import Function, run
from bigbatch.check.watch import Record

PARALLEL = 1e-6
"""Gradients differ in length alone where the cosine of their angle is closer to 1."""


class Explanation(NamedTuple):
    """Suspects without which runs are the same, and what gradients are multiplied by where "scale" is one of them."""

    removed: frozenset[str]
    factors: dict[Arrangement, float]


class Experiments:
    """Makes runs of a loop, and remembers them.

    Args:
        function: The loop.
        setup: What all runs have in common.
        name: Of the loop.
        time_limit_s: Of one run.
        say: Told before each run what it is.
    """

    def __init__(
        self, function: Function, setup: Setup, *, name: str, time_limit_s: float, say: Callable[[str], None] | None = None
    ) -> None:
        self.setup, self.name = setup, name
        self._function, self._time_limit_s, self._say = function, time_limit_s, say
        self._known: dict[Setup, list[Record]] = {}
        self.num_runs = 0

    @property
    def tolerance(self) -> float:
        """Largest relative deviation that counts as rounding."""
        return TOLERANCE[self.setup.float64]

    def records(
        self, arrangement: Arrangement, removed: frozenset[str] = frozenset(), *, factor: float = 1.0, again: bool = False
    ) -> list[Record]:
        """What each worker did in a run; `again` makes it anew."""
        setup = self.setup._replace(arrangement=arrangement, removed=self.setup.removed | removed, factor=factor)
        if again or setup not in self._known:
            if self._say is not None:
                without = ", ".join(sorted(setup.removed))
                self._say(f"{self.name} at {arrangement}" + (f", without {without}" if without else ""))
            self.num_runs += 1
            self._known[setup] = run(self._function, setup, time_limit_s=self._time_limit_s, name=self.name)
        return self._known[setup]

    def deviation(self, arrangement: Arrangement, removed: frozenset[str] = frozenset(), *, factor: float = 1.0) -> Deviation:
        """Of an arrangement from the whole batch, where both are without what is removed."""
        own = self.records(arrangement, removed, factor=factor if "scale" in removed else 1.0)
        return worst(own, self.records(WHOLE, removed)[0], tolerance=self.tolerance)


def active(experiments: Experiments, arrangements: Sequence[Arrangement]) -> frozenset[str]:
    """Suspects that these runs give a reason for: what they call, and what their samples are."""
    runs = [experiments.records(each) for each in arrangements]
    called = {name for records in runs for record in records for name, times in record.calls.items() if times}
    found = called & set(SUSPECTS) | {"scale"}
    if any("watched" in record.facts for records in runs for record in records):
        found |= {"mean_of_means"}
    if any(record.num_forms > 1 for records in runs for record in records):
        found |= {"token_weighting"}
    if any(_disagree(records, experiments.tolerance) for records in runs):
        found |= {"no_all_reduce"}
    if any(experiments.deviation(each).learning_rate > experiments.tolerance for each in arrangements):
        found |= {"learning_rate"}
    return frozenset(found)


def explanation(experiments: Experiments, arrangements: Sequence[Arrangement], suspects: frozenset[str]) -> Explanation | None:
    """A smallest set of suspects without which these arrangements make the same update: without any of them, they don't.

    First all are removed; then, from the least specific on, each is put back if that does no harm.

    Returns:
        The set; None if the updates differ even without all suspects.
    """
    for removed in (suspects, suspects | {"interaction"}):
        factors = {each: _factor(experiments, each, removed) for each in arrangements}
        if _same(experiments, removed, factors):
            break
    else:
        return None
    for suspect in SUSPECTS:
        if suspect in removed and _same(experiments, removed - {suspect}, factors):
            removed -= {suspect}
    return Explanation(removed, factors)


def _same(experiments: Experiments, removed: frozenset[str], factors: dict[Arrangement, float]) -> bool:
    found = (experiments.deviation(each, removed, factor=factor).largest for each, factor in factors.items())
    return all(largest <= experiments.tolerance for largest in found)


def _factor(experiments: Experiments, arrangement: Arrangement, removed: frozenset[str]) -> float:
    """What the gradients must be multiplied by, if they differ in length alone."""
    found = experiments.deviation(arrangement, removed - {"scale"})
    parallel = not math.isnan(found.cosine) and abs(found.cosine - 1) < PARALLEL
    return 1 / found.ratio if parallel and abs(found.ratio - 1) > experiments.tolerance else 1.0


def _disagree(records: Sequence[Record], tolerance: float) -> bool:
    """Whether workers have other gradients at a step."""
    return len(records) > 1 and any(worst([each], records[0], tolerance=tolerance).gradient > tolerance for each in records[1:])
