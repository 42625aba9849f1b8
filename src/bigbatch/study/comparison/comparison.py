"""Three arms over seeds, the verdict on each in words, and what to do now.

Scores enter the verdict as `Metric.comparable`, larger is better, and leave it as `Metric.difference`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from bigbatch.core.metric import ACCURACY, Metric, metric_of
from bigbatch.core.notebook import Content, Displayed
from bigbatch.recipe import Recipe
from bigbatch.scaling import Plan
from bigbatch.study.comparison.expectation import expectation
from bigbatch.study.comparison.learning import in_words, learnt_nothing, margin_is_too_wide, stored
from bigbatch.study.comparison.verdict import Design, Rate, SeedsVerdict, judge_seeds
from bigbatch.train.measure.constant_prediction import ConstantPrediction
from bigbatch.train.state.result import Result


class Arm(NamedTuple):
    """One recipe over several seeds."""

    name: str  # "reference", "batch only" or the rule
    folder: str  # below the study's folder
    recipe: Recipe
    results: tuple[Result, ...]
    metric: Metric = ACCURACY

    @property
    def scores(self) -> list[float]:
        """Test scores of the runs that did not diverge, in the metric's unit."""
        return [self.metric.shown(result.test_score) for result in self.results if not result.diverged]

    @property
    def by_seed(self) -> list[float | None]:
        """Test score of every run as the verdict takes it, larger is better, in the order of seeds; None for one that diverged."""
        return comparable_scores(self.results, self.metric)

    @property
    def num_diverged(self) -> int:
        """Runs that diverged."""
        return sum(result.diverged for result in self.results)

    @property
    def seeds_without_score(self) -> list[int]:
        """Seeds of the runs that ended well and whose test score is not a number, or has no ratio to others where these are compared."""
        first = self.recipe.seed
        return [first + i for i, score in enumerate(self.by_seed) if score is not None and not math.isfinite(score)]


@dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """Three arms, and whether the second and third held the reference's score."""

    task: str
    metric: Metric
    plan: Plan
    arms: tuple[Arm, Arm, Arm]  # reference, batch only, planned
    design: Design
    constant: ConstantPrediction | str | None = None  # on the test set; a text says why it can't be measured

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", metric_of(self.metric))  # a name alone will do

    @property
    def margin(self) -> float:
        """What may be lost without calling it a loss, as the metric states its margin: points of accuracy."""
        return self.metric.stated_margin(self.design.margin)

    def verdict(self, arm: Arm) -> SeedsVerdict:
        """The test of an arm against the reference, over the seeds that both ran.

        Undecided, with no difference, where `cannot_be_judged` says why.
        """
        num = min(len(arm.results), len(self.arms[0].results))
        if self.cannot_be_judged(arm):
            nothing = Rate(0, num)
            return SeedsVerdict("undecided", math.nan, None, None, 0, nothing, Rate(arm.num_diverged, num), floored=False)
        return judge_seeds(arm.by_seed[:num], self.arms[0].by_seed[:num], self.design)

    def cannot_be_judged(self, arm: Arm) -> str:
        """Why nothing can be said of an arm, in words; empty if it can be judged."""
        reference = self.arms[0]
        for each in (reference, arm):
            if seeds := each.seeds_without_score:
                named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
                if self.metric.relative and all(math.isfinite(score) for score in each.scores):
                    return f"the test score of {each.name}, {named}, is not above 0, which a relative margin needs; state an absolute one"
                return f"the test score of {each.name}, {named}, is not a number; see why the task's scores are not finite"
        died = Rate(reference.num_diverged, len(reference.results))
        if died.cases == died.runs or died.at_least(self.design.diverged_confidence) > self.design.bad_share:
            return f"{died.words(self.design.confidence)} runs of the reference diverged; tune it"
        if all(len(each.results) > 2 and len({_told(result) for result in each.results}) == 1 for each in (reference, arm)):
            return (
                f"all {len(reference.results)} runs of the reference have the same score to the last digit, and so have those of "
                f"{arm.name}: what is run does not follow the seed"
            )
        if isinstance(self.constant, ConstantPrediction):
            why = learnt_nothing(reference.results, self.constant, self.metric)
            return f"the reference {why}; tune it" if why else ""
        return ""

    def sentence(self, arm: Arm) -> str:
        """The verdict in words."""
        start = f"{arm.name} at {self._size(arm)}"
        if why := self.cannot_be_judged(arm):
            return f"{start}: can't be judged: {why}"
        return f"{start}: {self._in_words(self.verdict(arm), self.arms[0].num_diverged)}"

    def _size(self, arm: Arm) -> str:
        """The batch of an arm; where workers take steps of their own, the samples between two exchanges."""
        steps = self.plan.local
        if steps is None or arm is not self.arms[2]:
            return f"{arm.recipe.batch.global_batch:,}"
        return f"{steps.samples:,} samples between exchanges of {steps.workers} workers (updates of {steps.inner_batch:,})"

    def _in_words(self, verdict: SeedsVerdict, reference_diverged: int) -> str:
        design, confidence, metric = self.design, self.design.confidence, self.metric
        unit = "" if metric.difference_unit == "points" else f" {metric.difference_unit}".rstrip()
        text = {"held": "held", "lost": "did not hold", "undecided": "undecided"}[verdict.outcome]
        if verdict.pairs:
            seeds = "1 seed" if verdict.pairs == 1 else f"{verdict.pairs} seeds"
            text += f": {metric.in_words(verdict.difference)}{_interval(verdict, metric)} over {seeds}"
        text += f", margin {metric.difference(-design.margin):+g}{unit} at {100 * confidence:g} %"
        if verdict.floored:
            sample = metric.length(design.resolution, digits=2)
            text += f"; differences scatter by less than one test sample, {sample}, which is taken instead"
        if verdict.diverged.cases:
            text += f"; {verdict.diverged.words(confidence)} runs diverged"
        if reference_diverged:
            text += f"; {reference_diverged} of the reference's diverged too"
        if verdict.outcome == "lost":
            return text
        rare = f"at {100 * confidence:g} % fewer than {math.ceil(100 * verdict.bad.at_most(design.bad_confidence))} % are"
        what = f"bad (more than {abs(metric.difference(-design.margin)):g}{unit} {metric.worse_side} every run of the reference)"
        text += f"; {verdict.bad.cases or 'none'} of {verdict.bad.runs} runs {what}: {rare}"
        return text + (self._what_is_missing(verdict) if verdict.outcome == "undecided" else "")

    def _what_is_missing(self, verdict: SeedsVerdict) -> str:
        design, runs = self.design, verdict.bad.runs
        if verdict.bad.cases == 0 and design.max_seeds < design.least_runs:
            share = 1 - (1 - design.confidence) ** (1 / design.max_seeds)
            return (
                f'. "held" needs {design.least_runs} runs, none of them bad: --max-seeds {design.least_runs}, or --bad-share '
                f"{math.ceil(100 * share) / 100:.2g} to let more of them be bad"
            )
        if runs >= design.max_seeds:
            return f". {runs} seeds did not decide; a new comparison needs more, or a wider margin"
        return f". Up to {design.max_seeds} seeds are tried"

    def advice(self) -> str:
        """What to do now, in one sentence."""
        reference, only, planned = self.arms
        large, small = only.recipe.batch.global_batch, reference.recipe.batch.global_batch
        if why := self.cannot_be_judged(planned) or self.cannot_be_judged(only):
            return f"nothing can be said yet: {why}"
        outcomes = self.verdict(only).outcome, self.verdict(planned).outcome
        fewer = f"{reference.recipe.num_updates:,} to {planned.recipe.num_updates:,} updates"
        if outcomes[1] == "held":
            also = "; changing the batch alone held too" if outcomes[0] == "held" else ""
            return f"train at {self._size(planned)} with the planned recipe ({planned.name}): {self.metric} held ({fewer}){also}"
        if outcomes[0] == "held":
            return f"train at {large:,} with only the batch changed: {self.metric} held there ({fewer}), and not with the plan"
        between = round(math.sqrt(small * large))
        if "undecided" in outcomes:
            seeds = f"a new comparison with more than {len(planned.results)} seeds (--max-seeds)"
            return f"not decided: {seeds}, or a wider margin (--margin); or a batch between, such as --to {between:,}"
        return f"stay at {small:,}: neither held at {large:,}; try a batch between, such as --to {between:,}, or another rule (--rule)"

    def constant_in_words(self) -> str:
        """What a constant prediction scores, in a sentence, and whether the margin would let it hold; empty where nothing was measured."""
        words, constant, metric = in_words(self.constant, self.metric), self.constant, self.metric
        if isinstance(constant, ConstantPrediction) and margin_is_too_wide(self.arms[0].results, constant, metric, self.design.margin):
            return f'{words}, which is within the margin of the reference: "held" would say nothing; state a smaller margin'
        return words

    def expectation(self) -> str:
        """What the design can be expected to say, from the runs so far, in words."""
        return expectation(self.design, [arm.by_seed for arm in self.arms], self.metric)

    def shown(self) -> Content:
        """What a notebook shows: what to do, the verdicts, and a row a run, its score in the metric's unit."""
        measured = ["diverged", "updates", "samples", "train_s", "samples_per_s"]
        rows = []
        for arm in self.arms:
            for seed, result in enumerate(arm.results, arm.recipe.seed):
                score = None if result.diverged else self.metric.shown(result.test_score)
                rows.append([arm.name, arm.recipe.batch.global_batch, seed, score, *(getattr(result, name) for name in measured)])
        columns = ["arm", "global_batch", "seed", f"test {self.metric.label}", *measured]
        return Content([f"{self.task}: {self.advice()}", *map(self.sentence, self.arms[1:])], columns, rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what the report reads."""
        return {
            "task": self.task,
            "metric": self.metric.to_plain(),
            "margin": self.margin,
            "design": asdict(self.design),
            "expectation": self.expectation(),
            "constant_prediction": stored(self.constant),
            "constant_in_words": self.constant_in_words(),
            "advice": self.advice(),
            "rule": self.plan.rule,
            "reason": self.plan.reason,
            "warnings": list(self.plan.warnings),
            "changes": [change.to_dict() for change in self.plan.changes],
            "arms": [
                {
                    "name": arm.name,
                    "folder": arm.folder,
                    "global_batch": arm.recipe.batch.global_batch,
                    "recipe": arm.recipe.to_dict(),
                    "results": [json.loads(result.to_json()) for result in arm.results],
                    "outcome": None if arm is self.arms[0] else self.verdict(arm).outcome,
                    "sentence": "" if arm is self.arms[0] else self.sentence(arm),
                }
                for arm in self.arms
            ],
        }


def _told(result: Result) -> tuple[float | None, ...]:
    """What a run tells of its weights; None for what it does not."""
    scores = (result.test_score, result.test_loss, result.validation_score)
    return tuple(score if math.isfinite(score) else None for score in scores)


def _interval(verdict: SeedsVerdict, metric: Metric) -> str:
    lower, upper = metric.interval(verdict.lower, verdict.upper)
    if lower is not None and upper is not None:
        return f" [{metric.signed(lower)}, {metric.signed(upper)}]"
    if upper is not None:
        return f", at most {metric.signed(upper)},"
    return f", at least {metric.signed(lower)}," if lower is not None else ", no interval"


def comparable_scores(results: Sequence[Result], metric: Metric) -> list[float | None]:
    """Test scores as a verdict takes them, larger is better; None for a run that diverged."""
    return [None if result.diverged else metric.comparable(result.test_score) for result in results]
