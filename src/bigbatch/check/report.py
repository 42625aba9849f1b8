"""What a check found: a row per arrangement, the culprits, and one sentence."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from bigbatch.check.arrangement import Arrangement
from bigbatch.check.compare import Deviation


class Row(NamedTuple):
    """One arrangement against the whole batch in one pass of one worker.

    Attributes:
        arrangement: Workers and micro-batches.
        micro_batch: Samples in one forward pass.
        deviation: From the reference.
        dropped: Samples that no worker draws in an epoch; None where the data is not watched.
        same: Whether the update is the same, but for rounding.
    """

    arrangement: Arrangement
    micro_batch: int
    deviation: Deviation
    dropped: int | None
    same: bool


class Culprit(NamedTuple):
    """Why an update differs.

    Attributes:
        name: Such as "clipping"; see docs/check.md.
        sentence: What the loop does.
        evidence: What the experiments showed.
        remedy: What to write instead.
    """

    name: str
    sentence: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.sentence} ({self.evidence}). Remedy: {self.remedy}"


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        loop: Its name.
        rows: One per arrangement; the first is the reference.
        culprits: Each confirmed by an experiment, where its evidence says so.
        notes: What else there is to know.
        tolerance: Largest relative deviation that counts as rounding.
        runs: How often the loop was run.
    """

    loop: str
    rows: tuple[Row, ...]
    culprits: tuple[Culprit, ...]
    notes: tuple[str, ...]
    tolerance: float
    runs: int

    @property
    def same(self) -> bool:
        """Whether the loop makes the same update in every arrangement, and nothing else was found."""
        return not self.culprits

    def sentence(self) -> str:
        """The verdict."""
        if self.same:
            largest = max(row.deviation.largest for row in self.rows)
            return f"{self.loop}: the same update in all {len(self.rows)} arrangements (largest deviation {largest:.1g})"
        return f"{self.loop}: " + "; ".join(str(culprit) for culprit in self.culprits)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it; infinite deviations and unknown ratios are None."""
        rows = []
        for row in self.rows:
            numbers = {key: _finite(value) for key, value in row.deviation._asdict().items()}
            workers, accumulation = row.arrangement
            of_row = {"workers": workers, "accumulation": accumulation, "micro_batch": row.micro_batch, "same": row.same}
            rows.append({**of_row, "dropped": row.dropped, **numbers})
        found = [culprit._asdict() for culprit in self.culprits]
        told = {"loop": self.loop, "same": self.same, "sentence": self.sentence(), "tolerance": self.tolerance, "runs": self.runs}
        return {**told, "arrangements": rows, "culprits": found, "notes": list(self.notes)}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
