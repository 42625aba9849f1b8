"""The gradient noise scale over a run of a recipe, and what it says about the batch."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bigbatch.core.checks import Interrupted, UserError
from bigbatch.core.notebook import Content, Displayed
from bigbatch.core.storage.writing import make_folder, write_atomically
from bigbatch.noise.estimate import NoiseEstimate, estimate
from bigbatch.noise.norm_layers import NORMS
from bigbatch.noise.reader import ALL
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import TaskRunner, runner_of
from bigbatch.study.result_files import NOISE
from bigbatch.study.tokens import tokens_per_sample
from bigbatch.tasks.task import Task
from bigbatch.train.state.record_lines import read_record
from bigbatch.train.trainer import fit

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Edges of the stretches of a run that are looked at apart: the noise scale moves fastest at the start."""
AROUND, FEWEST = 0.02, 25
"""Updates on either side of one that is asked for: a share of the run's, and at least so many."""


class Stretch(NamedTuple):
    """Some updates of the run."""

    first: int  # update, from 0
    last: int  # one behind
    estimates: dict[str, NoiseEstimate]  # by part of the model; "all" is the whole, or there is "norms" alone

    @property
    def whole(self) -> NoiseEstimate:
        """Of all that was measured: the whole model, or its norm layers."""
        return self.estimates[ALL if ALL in self.estimates else NORMS]


@dataclass(frozen=True, repr=False)
class NoiseStudy(Displayed):
    """What was measured, and the words for it."""

    task: str
    recipe: Recipe
    stretches: tuple[Stretch, ...]
    average: NoiseEstimate  # over updates, of the noise scales of the stretches; its bounds are the means of theirs
    tokens_per_sample: float | None = None  # on average; None where samples are not made of tokens, or it is not said

    @property
    def part(self) -> str:
        """What `whole` and `average` are of: "all", or "norms" alone."""
        return ALL if ALL in self.stretches[0].estimates else NORMS

    def sentence(self) -> str:
        """Which batches the measurement supports."""
        early, late = self.stretches[0], self.stretches[-1]
        words = f"batches {self._up_to(early.whole)} early (updates {early.first:,} to {early.last:,})"
        if late is not early:
            words += f", {self._up_to(late.whole)} late ({late.first:,} to {late.last:,})"
        if self.part == NORMS:
            words = f"by the norm layers alone, {words}"
        return (
            f"{words}; {self._up_to(self.average)} on the mean of the run. There a larger batch begins to pay less than it costs: "
            "twice the fewest samples, twice the fewest updates"
        )

    def _up_to(self, value: NoiseEstimate) -> str:
        words = value.in_words()
        if not words.startswith("at least") and not words[0].isdigit():
            return f"of unknown size ({words})"
        about = "" if words.startswith("at least") else "about "
        tokens = self.in_tokens(value).removeprefix("at least ")
        return f"up to {about}{words} samples" + (f" = {tokens} tokens" if tokens[:1].isdigit() else "")

    def in_tokens(self, value: NoiseEstimate) -> str:
        """A noise scale in tokens, in words; empty where a sample's are not known."""
        return value.in_tokens(self.tokens_per_sample).in_words() if self.tokens_per_sample else ""

    def doubts(self) -> list[str]:
        """What the measurement does not know."""
        o, batch = self.recipe.optimizer, self.recipe.batch
        doubts = [
            f"It holds along this run (peak rate {o.lr:g} at a batch of {batch.global_batch:,}): the noise scale falls as rate over batch "
            "rises, so a recipe that is not well tuned misleads.",
            "It speaks of the training loss, to within a factor of a few; not of accuracy on other data.",
        ]
        if self.part == NORMS:
            doubts.append("It is of the norm layers alone; the whole is near it up to a factor (docs/language_models.md).")
        if o.name != "sgd":
            doubts.append(f"It is the plain noise scale; {o.name} weighs gradients before it steps (bigbatch.noise.preconditioned).")
        if batch.ghost_batch is not None:
            doubts.append(f"Samples are normalised in groups of {batch.ghost_batch}: it counts groups as independent, not samples.")
        if any(math.isinf(stretch.whole.upper) for stretch in self.stretches):
            doubts.append("Where only a lower bound is given the signal is too weak to tell: more updates, or a larger batch, would.")
        return doubts

    def shown(self) -> Content:
        """What a notebook shows: which batches the measurement supports, and a row a stretch and part."""
        names = ["noise_scale", "lower", "upper", "signal", "noise", "num_updates"]
        rows = [[s.first, s.last, part, *(getattr(e, name) for name in names)] for s in self.stretches for part, e in s.estimates.items()]
        return Content([f"{self.task}: {self.sentence()}", *self.doubts()], ["first", "last", "part", *names], rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; null where there is no bound or no value."""
        return {
            "task": self.task,
            "recipe": self.recipe.to_dict(),
            "of": self.part,
            "tokens_per_sample": self.tokens_per_sample,
            "average": self._plain(self.average),
            "stretches": [
                {"first": s.first, "last": s.last, "parts": {name: self._plain(e) for name, e in s.estimates.items()}}
                for s in self.stretches
            ],
            "sentence": self.sentence(),
            "doubts": self.doubts(),
        }

    def _plain(self, value: NoiseEstimate) -> dict[str, Any]:
        plain = {k: v if isinstance(v, int | str) or math.isfinite(v) else None for k, v in value._asdict().items()}
        plain["words"] = value.in_words()
        if self.tokens_per_sample:
            tokens = value.in_tokens(self.tokens_per_sample)
            plain |= {f"{k}_tokens": v if math.isfinite(v) else None for k, v in list(tokens._asdict().items())[:3]}
            plain["words_tokens"] = tokens.in_words()
        return plain


def measure_noise(
    task: Task | Runner | Callable[..., Any] | str,
    recipe: Recipe | None = None,
    *,
    out: str | Path,
    at: Sequence[int] = (),
    layers: bool = False,
    norms: bool = False,
    quiet: bool = False,
) -> NoiseStudy:
    """Train by a recipe and measure the noise scale on the way; the test set is not used.

    Args:
        task: A task, or its name; or a function `train(recipe, run)` that gives its monitor to `run.noise`.
        recipe: A shipped task's named one if left out.
        out: Folder of the run; a finished one is read, an unfinished one continued. `noise.json` is written there.
        at: Updates around which to look; stretches of the whole run, ever longer, if left out.
        layers: Measure each layer too.
        norms: Measure the norm layers alone, which costs least; see `bigbatch.noise.norm_layers`.
        quiet: Show no progress.

    Raises:
        UserError: If an update is outside the run, the run measures no noise, an update of the recipe can't tell signal from noise, or
            both layers and norms are asked for.
        Interrupted: After Ctrl-C; the same call goes on.
    """
    runner = runner_of(task)
    if not runner.in_process:
        raise UserError(f"{runner.name}: a command can't tell noise scales; measure in a function (docs/own_script.md), or in a task")
    if layers and norms:
        raise UserError("layers and norms: norm layers alone leave the others out; choose one of the two")
    recipe = recipe or Recipe.named(runner.name)
    tokens = tokens_per_sample(runner, recipe)
    if recipe.batch.rule is None:
        _windows(recipe.num_updates, at)
    folder = make_folder(Path(out))
    measured: bool | Literal["layers", "norms"] = "layers" if layers else "norms" if norms else True
    request = Request(out=folder, measure_test=False, quiet=quiet, title=runner.name)
    if isinstance(runner, TaskRunner):
        how: dict[str, Any] = {"resume": (folder / "last.pt").exists(), "measure_test": False, "measure_noise": measured}
        try:
            fit(runner.task, recipe, out=folder, quiet=quiet, **how)
        except Interrupted:
            raise runner.interrupted(request) from None
    else:
        runner.run(recipe, request)
    told = {line["update"]: line["signal_and_noise"] for line in read_record(folder / "record.jsonl") if line["kind"] == "noise"}
    parts = [name for name in next(iter(told.values()), {}) if all(name in line for line in told.values())]
    asked = isinstance(runner, TaskRunner)  # a function measures what it likes
    if not parts or (layers and len(parts) == 1) or (asked and norms != (parts == [NORMS])):
        what = "each layer's noise" if layers and parts else "the norm layers' noise" if norms else "noise"
        remedy = (
            "give another --out, or remove it" if isinstance(runner, TaskRunner) else "give its monitor to run.noise before the first log"
        )
        raise UserError(f"the run in {folder} did not record {what} from its start on: {remedy}")
    lines = [told.get(update, {}) for update in range(1, max(told) + 1)]
    stretches = tuple(Stretch(first, last, _estimates(lines[first:last], parts)) for first, last in _windows(len(lines), at))
    study = NoiseStudy(runner.name, recipe, stretches, _average(stretches), tokens)
    write_atomically(folder / NOISE, json.dumps(study.to_dict(), indent=2).encode())
    return study


def _windows(num_updates: int, at: Sequence[int]) -> list[tuple[int, int]]:
    """First update, and one behind the last, of each stretch."""
    wrong = [update for update in at if not 0 <= update <= num_updates]
    if wrong:
        raise UserError(f"update {wrong[0]:,}: the run has updates 0 to {num_updates:,}; choose among them")
    if at:
        half = max(FEWEST, round(AROUND * num_updates))
        starts = [min(max(update - half, 0), max(num_updates - 2 * half, 0)) for update in at]
        return [(start, min(start + 2 * half, num_updates)) for start in starts]
    edges = [round(share * num_updates) for share in SHARES]
    while len(edges) > 2 and edges[1] < 2 * FEWEST:  # a short first stretch would say nothing
        del edges[1]
    return list(itertools.pairwise(edges))


def _estimates(lines: Sequence[Mapping[str, Sequence[float | None]]], parts: Sequence[str]) -> dict[str, NoiseEstimate]:
    def of(part: str, column: int) -> list[float]:
        values = [line.get(part, (None, None))[column] for line in lines]
        return [math.nan if v is None else v for v in values]

    return {part: estimate(of(part, 0), of(part, 1)) for part in parts}


def _average(stretches: Sequence[Stretch]) -> NoiseEstimate:
    """Over updates; no value where a stretch gives only a bound."""
    weights = [s.last - s.first for s in stretches]

    def mean(values: Sequence[float]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    wholes = [s.whole for s in stretches]
    return NoiseEstimate(
        noise_scale=mean([math.nan if math.isinf(e.upper) else e.noise_scale for e in wholes]),
        lower=mean([e.lower for e in wholes]),
        upper=mean([e.upper for e in wholes]),
        signal=mean([e.signal for e in wholes]),
        noise=mean([e.noise for e in wholes]),
        num_updates=sum(e.num_updates for e in wholes),
        num_skipped=sum(e.num_skipped for e in wholes),
    )
