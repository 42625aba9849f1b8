"""What a finished run measured."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from bigbatch.core.checks import InputError
from bigbatch.core.clock import Clock
from bigbatch.core.environment import how_to_go_on
from bigbatch.core.notebook import Content, Displayed, Plot, plot_of
from bigbatch.core.storage.reading import exists, first_mistake, read_json
from bigbatch.core.storage.writing import write_atomically

if TYPE_CHECKING:
    from bigbatch.train.measure.evaluate import Evaluation
    from bigbatch.train.state.record import Record


@dataclass(frozen=True, repr=False)
class Result(Displayed):
    """Scores are means over a split, of the task's own; accuracy, in [0, 1], for the shipped tasks. NaN: not measured."""

    task: str
    updates: int
    samples: int
    test_score: float = math.nan
    test_loss: float = math.nan
    validation_score: float = math.nan  # of the final weights
    best_validation_score: float = math.nan  # the lowest where lower is better
    train_s: float = math.nan  # seconds in updates, without evaluation and saving
    samples_per_s: float = math.nan
    curvature_s: float = 0.0  # seconds spent looking at curvature, not in train_s
    micro_batch: int = 0
    reached: bool = False  # True where the run ended at its target
    diverged: bool = False  # True only in studies, which go on after a diverged run

    def cost_of_curvature(self) -> str:
        """What curvature cost on the way, in words with a comma before; empty for nothing.

        >>> Result("t", updates=1, samples=1, train_s=20.0, curvature_s=1.0).cost_of_curvature()
        ', curvature another 1.0 s (5.0 %)'
        """
        share = 100 * self.curvature_s / self.train_s if self.train_s else math.nan
        return f", curvature another {self.curvature_s:.1f} s ({share:.1f} %)" if self.curvature_s else ""

    def shown(self) -> Content:
        """What a notebook shows: the scores as the task gives them, and all fields."""
        scores = [f"{name} score {value:.4g}" for name, value in (("test", self.test_score), ("validation", self.validation_score))]
        known = [text for text, value in zip(scores, (self.test_score, self.validation_score), strict=True) if math.isfinite(value)]
        told = ["diverged"] if self.diverged else known or ["no score"]
        seconds = f", {self.train_s:.3g} s" if math.isfinite(self.train_s) else ""
        words = f"{self.task}: {', '.join(told)}, {self.updates:,} updates{seconds}"
        return Content([words], ["field", "value"], [[name, value] for name, value in asdict(self).items()])

    def plot(self, out: str | Path | None = None) -> Plot:
        """Training loss and validation score of the run, shown by a notebook.

        Args:
            out: Its folder, which holds the curves; a result is the end of them.

        Raises:
            UserError: If it is not given, or holds no record.
        """
        return plot_of(self, folder=out)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None for numbers that are not finite, which JSON has not."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    def to_json(self) -> str:
        """JSON text of `to_dict`."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """The inverse of `to_json`; NaN for null."""
        fields: dict[str, Any] = {k: math.nan if v is None else v for k, v in json.loads(text).items()}
        return cls(**fields)

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read a `result.json`. Fields that a newer version of bigbatch added are left out.

        Raises:
            InputError: If it can't be read, or holds no result.
        """
        resumes = exists(path.with_name("last.pt"))
        remedy = f"delete {path.name} and {how_to_go_on()}: the end of the run is made again" if resumes else "restore a copy"
        fields = read_json(path, remedy)
        known = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__ and value is not None}
        try:
            result = _RESULT.validate_json(json.dumps(known), strict=True)
        except ValidationError as error:
            raise InputError(f"{path}: is damaged: {first_mistake(error)}; {remedy}") from None
        for name in ("updates", "samples", "micro_batch"):
            if getattr(result, name) < 0:
                raise InputError(f"{path}: is damaged: {name} = {getattr(result, name)}: must not be negative; {remedy}")
        return result


_RESULT = TypeAdapter(Result)


def write_result(
    result: Result, record: "Record", clock: Clock, folder: Path | None, *, test: "Evaluation", validation: "Evaluation", **also: Any
) -> Result:
    """Fill in what a run measured, and leave it as the last line of its record and in `result.json`.

    Args:
        result: The rest of it; with `train_s`.
        record: Of the run.
        clock: Its end.
        folder: Of the run; None on workers that write nothing.
        test: Of the final weights.
        validation: Of the final weights.
        also: Further facts for the record.
    """
    result = replace(
        result,
        test_score=test.score,
        test_loss=test.loss,
        validation_score=validation.score,
        samples_per_s=clock.samples / result.train_s,
    )
    record.end(clock, **result.to_dict(), **also)
    if folder is not None:
        write_atomically(folder / "result.json", result.to_json().encode())
    return result
