"""The main job: the tuned reference, the same recipe with only the batch changed, and the plan, over seeds; did accuracy hold?

Or whatever score a task has: scores enter the verdict as `Metric.comparable`, larger is better, and leave it as `Metric.difference`.

Runs that share a seed share their initial weights and the order of the data, so that arms are compared pair by pair (verdict.py).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.checks import UserError
from bigbatch.core.metric import ACCURACY, Metric, metric_of
from bigbatch.core.notebook import Content, Displayed
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.reading import read_text
from bigbatch.core.storage.writing import write_atomically
from bigbatch.recipe import Recipe
from bigbatch.runner.jobs import Job, OneAfterAnother, Pool, Whole, run_jobs
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import runner_of
from bigbatch.runner.workers import WorkersRunner
from bigbatch.scaling import Plan, plan
from bigbatch.study.comparison.expectation import FEWEST_SEEDS, expectation, seeds_asked_for
from bigbatch.study.comparison.learning import in_words, learnt_nothing, margin_is_too_wide, stored
from bigbatch.study.comparison.stored import SUFFIX
from bigbatch.study.comparison.verdict import Design, Rate, SeedsVerdict, judge_seeds
from bigbatch.study.constant_prediction import constant_of
from bigbatch.tasks.task import Task
from bigbatch.train.measure.constant_prediction import ConstantPrediction
from bigbatch.train.state.result import Result

MOST_SEEDS = 14
"""Runs an arm at most, unless more are asked for: with fewer, one bad run in five can't be excluded."""


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
        return _comparable(self.results, self.metric)

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
        if died.cases == died.runs or died.at_least(self.design.confidence) > self.design.bad_share:
            return f"{died.words(self.design.confidence)} runs of the reference diverged; tune it"
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
        rare = f"at {100 * confidence:g} % fewer than {math.ceil(100 * verdict.bad.at_most(confidence))} % are"
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


def _interval(verdict: SeedsVerdict, metric: Metric) -> str:
    lower, upper = metric.interval(verdict.lower, verdict.upper)
    if lower is not None and upper is not None:
        return f" [{metric.signed(lower)}, {metric.signed(upper)}]"
    if upper is not None:
        return f", at most {metric.signed(upper)},"
    return f", at least {metric.signed(lower)}," if lower is not None else ", no interval"


def scale(
    task: Task | Runner | Callable[..., Any] | str,
    *,
    to: int,
    rule: str = "auto",
    workers: int | None = None,
    seeds: int | None = None,
    max_seeds: int | None = None,
    recipe: Recipe | None = None,
    out: str | Path,
    margin: float | None = None,
    bad_share: float = 0.2,
    noise_scale: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    pool: Pool | None = None,
) -> Comparison:
    """Train three arms over seeds and compare them on the test set.

    After the first seeds, each arm goes on by one seed at a time, with the reference, until it is decided.

    Args:
        task: A task, or its name; a function `train(recipe, run)`; or another way to run recipes (`bigbatch.runner`), such as a command.
        to: Global batch to scale to; by the rule "local", samples between two exchanges.
        rule: As in `plan`.
        workers: Processes of this machine that run what the rule "local" plans.
        seeds: Runs an arm before the first verdict, from the recipe's own seed on; as many as the power of the test asks for at the spread
            of the first three runs of the reference, if left out.
        max_seeds: Runs an arm at most; 14, or `seeds` if that is more, if left out. The same as `seeds` for a fixed number.
        recipe: The tuned reference; a shipped task's named recipe if left out.
        out: Folder of every run. Finished runs found there are used as they are, unfinished ones continued; several comparisons of
            one reference share it.
        margin: What may be lost without calling it a loss, as the task's metric states its own, which is taken if left out: 0.5 points of
            accuracy.
        bad_share: Share of runs that may be bad without calling it a loss, as in `verdict.Design`.
        noise_scale: As in `plan`.
        overrides: As in `plan`.
        quiet: Show no progress.
        say: Called with a line of text before each run, and with what the design can be expected to say.
        pool: Makes the runs; one after another in this process if left out.

    Returns:
        The comparison, also written to `out`.

    Raises:
        UserError: On bad arguments, data or folder.
        RunFailed: If a run of a function or a command failed, after the others.
        Interrupted: After Ctrl-C; run the same call again to go on.
    """
    runner = runner_of(task) if workers is None else WorkersRunner(runner_of(task), workers)
    metric = runner.metric
    most = max(seeds or 0, MOST_SEEDS) if max_seeds is None else max_seeds
    design = Design(metric.comparable_margin(margin), min(FEWEST_SEEDS, most) if seeds is None else seeds, most, bad_share)
    reference = recipe or Recipe.named(runner.name)
    if to == reference.batch.global_batch:
        raise UserError(f"to = {to}: is the reference's own batch; choose another")
    can_change = runner.can_change
    how: dict[str, Any] = {"noise_scale": noise_scale, "overrides": overrides, "can_change": can_change, "workers": workers}
    planned = plan(reference, global_batch=to, rule=rule, **how)
    only = plan(reference, global_batch=to, rule="none", can_change=can_change).recipe
    for each in (reference, only, planned.recipe):
        runner.check(each)
    if num_test_samples := runner.num_test_samples:
        design = replace(design, resolution=metric.resolution_of_a_sample / num_test_samples)
    name = f"batch-{to}-{planned.rule}" + (f"-{planned.local.workers}-workers" if planned.local is not None else "")
    arms = [
        Arm("reference", "reference", reference, (), metric),
        Arm("batch only", f"batch-{to}-only", only, (), metric),
        Arm(planned.rule if planned.rule != "none" else "none (planned)", name, planned.recipe, (), metric),
    ]

    def compared() -> Comparison:
        return Comparison(runner.name, metric, planned, (arms[0], arms[1], arms[2]), design, constant)

    constant = constant_of(runner, reference, split="test")

    with owned(Path(out)) as folder, pool or OneAfterAnother() as runs_of:
        whole = Whole(expected=design.seeds * len(arms))
        if seeds is None:
            _run_up_to(design.seeds, arms, [0], runner, runs_of, folder, quiet, say, whole)
            first, why = seeds_asked_for(design, arms[0].by_seed[: design.seeds], metric)
            design = replace(design, seeds=first)
            whole.expected = first * len(arms)
            if say is not None:
                say(why)
        if say is not None:
            say(expectation(design, [_known(folder / "reference", reference, design, metric)], metric))
        for runs in range(design.seeds, design.max_seeds + 1):
            going = arms[1:] if runs == design.seeds else [arm for arm in arms[1:] if _goes_on(compared(), arm)]
            if not going:
                break
            _run_up_to(runs, arms, [0, *(n for n in (1, 2) if arms[n] in going)], runner, runs_of, folder, quiet, say, whole)
            if say is not None and runs == design.seeds < design.max_seeds and any(_goes_on(compared(), arm) for arm in arms[1:]):
                say(compared().expectation())
        comparison = compared()
        content = json.dumps(comparison.to_dict(), indent=2).encode()
        write_atomically(folder / f"{name}{SUFFIX}", content)
        return comparison


def _goes_on(comparison: Comparison, arm: Arm) -> bool:
    return not comparison.cannot_be_judged(arm) and comparison.verdict(arm).outcome == "undecided"


def _known(folder: Path, recipe: Recipe, design: Design, metric: Metric) -> list[float | None]:
    """Comparable scores of the reference's runs that are finished already."""
    places = (folder / f"seed-{seed}" / "result.json" for seed in range(recipe.seed, recipe.seed + design.max_seeds))
    return _comparable([Result.load(place) for place in places if place.exists()], metric)


def _comparable(results: Sequence[Result], metric: Metric) -> list[float | None]:
    return [None if result.diverged else metric.comparable(result.test_score) for result in results]


def _run_up_to(
    runs: int,
    arms: list[Arm],
    going: Sequence[int],
    runner: Runner,
    pool: Pool,
    folder: Path,
    quiet: bool,
    say: Callable[[str], None] | None,
    whole: Whole,
) -> None:
    """Give each of the arms that go on so many runs; those that they lack are made, or found finished."""
    owners: list[int] = []
    jobs: list[Job] = []
    for number in going:
        arm = arms[number]
        for seed in range(arm.recipe.seed + len(arm.results), arm.recipe.seed + runs):
            batch = f"{arm.recipe.batch.global_batch:,}"
            request = Request(out=folder / arm.folder / f"seed-{seed}", title=f"{arm.name} {batch} seed {seed}", quiet=quiet)
            owners.append(number)
            opening = f"arm {number + 1} of 3, {arm.name}, batch {batch}, seed {seed}"
            jobs.append(Job(arm.recipe.replace({"seed": seed}), request, opening))
    finished = [job.is_finished for job in jobs]
    whole.expected = max(whole.expected, whole.done + len(jobs))

    def tell(number: int, result: Result) -> None:
        out = jobs[number].request.out
        if say is not None and result.diverged and not finished[number] and out is not None:
            say(read_text(out / "diverged.txt", "restore a copy").strip())

    results = run_jobs(pool, runner, jobs, say, done=tell, whole=whole)
    for number in going:
        own = tuple(result for owner, result in zip(owners, results, strict=True) if owner == number)
        arms[number] = arms[number]._replace(results=(*arms[number].results, *own))
