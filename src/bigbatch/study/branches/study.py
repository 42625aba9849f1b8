"""What came of branches from the checkpoints of a run, in numbers, rows and words, each with what it doesn't know."""

import math
import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigbatch.core.notebook import Content, Displayed
from bigbatch.core.storage.json_lines import finite
from bigbatch.noise.branches import Branches, LocalCriticalBatch, excess
from bigbatch.noise.estimate import two_digits

COLUMNS = ("update", "batch", "rate times", "gain", "worse by", "at most")
"""`BranchStudy.rows`: gains are of the held-out loss; worse than the smallest batch, in the mean, and at most by the test of each alone."""


class BranchPoint(NamedTuple):
    """One checkpoint."""

    updates: int
    samples: int
    start_loss: float
    branches: tuple[Branches, ...]  # at the best rate of each batch; the first is of half the samples
    rate_factors: tuple[float, ...]  # what the run's rate was multiplied by in each: the best in the mean, where several were tried
    estimate: LocalCriticalBatch
    largest_held: float | None  # samples

    @property
    def full(self) -> tuple[Branches, ...]:
        """Those of the whole length."""
        return self.branches[1:]


@dataclass(frozen=True, repr=False)
class BranchStudy(Displayed):
    """What the branches of a run say.

    Attributes:
        task: What is trained.
        global_batch: Of the run, samples.
        samples: Of each branch.
        tolerance: Of the loss.
        cost: Of the branches of one checkpoint over that of the run, in samples; evaluating one counts as a third of training on it.
        confidence: Of intervals and tests.
        points: The checkpoints.
        notes: Doubts.
        seconds: An update takes, and a sample, by the times of the branches; None where they can't tell.
    """

    task: str
    global_batch: int
    samples: int
    tolerance: float
    cost: float
    confidence: float
    points: tuple[BranchPoint, ...]
    notes: tuple[str, ...] = ()
    seconds: tuple[float, float] | None = None

    def sentences(self) -> list[str]:
        """The outcome at each checkpoint, in words."""
        return [self._in_words(point) for point in self.points]

    def _in_words(self, point: BranchPoint) -> str:
        critical = point.estimate.critical_batch
        if critical.value == 0:
            return f"at update {point.updates:,}: critical batch far below {self.global_batch:,} samples: hardly any gain is left to share"
        known = not math.isnan(critical.lower)
        if known and critical.lower == 0 and critical.upper == math.inf:
            about = f" (about {_samples(critical.value)} samples, without a bound)" if critical.value else ""
            return f"at update {point.updates:,}: these branches can't tell the critical batch{about}: take more samples, or more windows"
        bounds = f" [{_samples(critical.lower)}, {_samples(critical.upper)}] ({100 * self.confidence:g} %)" if known else ""
        held = "" if point.largest_held is None else f"; not worse by {self.tolerance:g} up to {point.largest_held:,.0f}"
        return f"at update {point.updates:,}: critical batch about {_samples(critical.value)}{bounds} samples{held}"

    def rows(self) -> list[list[str]]:
        """A row a batch at each checkpoint, by `COLUMNS`."""
        rows = []
        for point in self.points:
            for each, factor in zip(point.full, point.rate_factors[1:], strict=True):
                gain = point.start_loss - statistics.fmean(each.losses)
                value, bound = excess(each, point.full[0], confidence=self.confidence)
                compared = each is not point.full[0] and math.isfinite(value)
                worse = f"{value:+.4f}" if compared else ""
                most = f"{bound:+.4f}" if compared and math.isfinite(bound) else ""
                shown = f"{gain:.4f}" if math.isfinite(gain) else "diverged"
                rows.append([f"{point.updates:,}", f"{each.global_batch:,.0f}", f"{factor:.3g}", shown, worse, most])
        return rows

    def shown(self) -> Content:
        """What a notebook shows: the outcome at each checkpoint, and the rows of the table."""
        return Content([*(self.sentences() or [self.task]), *self.notes], COLUMNS, self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite as None."""
        points = [
            {
                "updates": point.updates,
                "samples": point.samples,
                "start_loss": point.start_loss,
                "branches": [{**each._asdict(), "rate_factor": f} for each, f in zip(point.branches, point.rate_factors, strict=True)],
                "critical_batch": point.estimate.critical_batch._asdict(),
                "power": point.estimate.power,
                "gain": point.estimate.gain,
                "largest_held": point.largest_held,
            }
            for point in self.points
        ]
        own = {name: getattr(self, name) for name in ("task", "global_batch", "samples", "tolerance", "cost", "confidence")}
        plain: dict[str, Any] = finite({**own, "sentences": self.sentences(), "notes": list(self.notes), "points": points})
        plain["seconds"] = None if self.seconds is None else dict(zip(("per_update", "per_sample"), self.seconds, strict=True))
        return plain


def _samples(value: float) -> str:
    return "no bound" if value == math.inf else two_digits(value)
