"""From studies of the critical batch at several sizes to that at a larger one."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError
from bigbatch.core.storage.reading import exists, read_json
from bigbatch.noise.critical_batch import Estimate
from bigbatch.noise.estimate import two_digits
from bigbatch.noise.power_law import PowerLaw, Prediction, SizedBatch, fit_power_law, plain_size
from bigbatch.recipe import Recipe
from bigbatch.study.result_files import CRITICAL

WRITER = "give a file that `bigbatch critical` wrote, or its folder"


class Measured(NamedTuple):
    """The critical batch of one study."""

    study: str
    point: SizedBatch
    target: Any = None  # validation score


@dataclass(frozen=True)
class Extrapolation:
    """A power law through studies, and what it says of another size."""

    measured: tuple[Measured, ...]  # by size
    law: PowerLaw
    prediction: Prediction

    def sentence(self) -> str:
        """The outcome in words."""
        found, law, percent = self.prediction.critical_batch, self.law, f"{100 * self.law.confidence:g} %"
        power = f"{law.power.value:.2f} [{law.power.lower:.2f}, {law.power.upper:.2f}]"
        times = f"{self.prediction.times:.3g} times the largest measured"
        batch = f"{two_digits(found.value)} [{two_digits(found.lower)}, {two_digits(found.upper)}]"
        return (
            f"at a size of {plain_size(self.prediction.size)}, {times}, expect a critical batch of about {batch} samples "
            f"({percent} prediction): it grows with the size to the power of {power}"
        )

    def doubts(self) -> Iterator[str]:
        """What is not known, each in one line."""
        yield from self.law.notes
        if self.law.power.lower <= 0 <= self.law.power.upper:
            yield "whether the critical batch grows with the size at all: the interval of the power holds zero; measure at more sizes"
        targets = list(dict.fromkeys(one.target for one in self.measured))
        if len(targets) > 1:
            told = ", ".join(str(target) for target in targets)
            yield f"the targets differ ({told}): a harder one has a larger critical batch, which the law takes for the size's"

    def to_dict(self) -> dict[str, Any]:
        """Plain values. What is infinite or not known is None."""
        law, found = self.law, self.prediction
        return {
            "studies": [
                {"study": one.study, **_plain(one.point), "target": one.target, "used": one.point in law.points} for one in self.measured
            ],
            "law": {"factor": law.factor, "power": _plain(law.power), "scatter": law.scatter, "weighted": law.weighted},
            "prediction": {"size": found.size, "times": found.times, "critical_batch": _plain(found.critical_batch)},
            "confidence": law.confidence,
            "warning": found.warning or None,
            "sentence": self.sentence(),
            "doubts": list(self.doubts()),
        }


class Row(NamedTuple):
    """One line of the table."""

    study: str
    size: str
    critical_batch: str
    interval: str
    law: str  # what the law says there


def rows_of(found: Extrapolation) -> Iterator[Row]:
    """The table: a row a study, and one of the prediction."""
    for study, point, _ in found.measured:
        known = point.critical_batch < math.inf
        batch = two_digits(point.critical_batch) if known else f"> {two_digits(point.lower)}" if point.lower > 0 else "-"
        fitted = two_digits(found.law.at(point.size).critical_batch.value)
        yield Row(study, plain_size(point.size), batch, _interval(point.lower, point.upper) if known else "left out", fitted)
    size, wanted, _, _ = found.prediction
    yield Row("predicted", plain_size(size), "", _interval(wanted.lower, wanted.upper), two_digits(wanted.value))


def extrapolate(studies: Sequence[str | Path], size: float) -> Extrapolation:
    """Fit a power law to studies of `critical`, and read it at another size.

    Args:
        studies: Each a `critical.json`, or its folder; with `=SIZE` behind it, in samples, tokens or parameters, where the size is not the
            samples of its recipe's budget (epochs times `num_train_samples`). Three sizes at least.
        size: To predict the critical batch at, in the same unit.

    Raises:
        UserError: If a file can't be read or has no fit, or `fit_power_law` refuses.
    """
    measured = sorted((read(str(study)) for study in studies), key=lambda one: one.point.size)
    law = fit_power_law([one.point for one in measured])
    return Extrapolation(tuple(measured), law, law.at(size))


def read(text: str) -> Measured:
    """A study's critical batch and its size, from `STUDY` or `STUDY=SIZE`.

    Raises:
        UserError: If the file can't be read or has no fit, or the size is not a number.
    """
    name, equals, given = text.rpartition("=")
    if not equals or exists(Path(text)):
        name, given = text, ""
    path = Path(name)
    file = path / CRITICAL if exists(path) and path.is_dir() else path
    stored = read_json(file, WRITER)
    try:
        point = SizedBatch(_number(given) if equals and given else _size_of(stored), *_batch_of(stored))
    except UserError as error:
        raise UserError(f"{text}: {error}") from None
    return Measured(name, point, stored.get("target"))


def _number(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        raise UserError(f"size = {text!r}: must be a number, such as STUDY=1e9") from None


def _size_of(stored: Mapping[str, Any]) -> float:
    """Samples of the recipe's budget."""
    recipe = stored.get("recipe")
    if not isinstance(recipe, Mapping):
        raise UserError("has no recipe, and so no size; give it behind the study, as STUDY=1e9")
    return float(Recipe.from_dict(dict(recipe)).total_samples)


def _batch_of(stored: Mapping[str, Any]) -> tuple[float, float, float]:
    """B_crit with its interval; NaN where an end is not there."""
    fit = stored.get("fit")
    critical = fit.get("critical_batch") if isinstance(fit, Mapping) else None
    if not isinstance(critical, Mapping) or "value" not in critical:
        raise UserError("its study has no fit; let three batches or more reach the target")
    value, lower, upper = (critical.get(name) for name in ("value", "lower", "upper"))
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise UserError(f"critical_batch = {value!r}: must be a number; {WRITER}")
    ends = [float(end) if isinstance(end, int | float) else missing for end, missing in ((lower, 0.0), (upper, math.inf))]
    return math.inf if value is None else float(value), ends[0], ends[1]


def _interval(lower: float, upper: float) -> str:
    if math.isnan(lower) or math.isnan(upper):
        return "-"
    return f"[{two_digits(lower)}, {'no bound' if upper == math.inf else two_digits(upper)}]"


def _plain(values: Estimate | SizedBatch) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values._asdict().items()}
