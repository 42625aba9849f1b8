"""The main job: the tuned reference, the same recipe with only the batch changed, and the plan, over seeds; did accuracy hold?

Or whatever score a task has. Runs that share a seed share their initial weights and the order of the data, so that arms are compared pair
by pair (verdict.py).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigbatch.core.checks import UserError
from bigbatch.core.metric import Metric
from bigbatch.core.storage.folder_lock import owned
from bigbatch.core.storage.reading import read_text
from bigbatch.core.storage.writing import write_atomically
from bigbatch.recipe import Recipe
from bigbatch.runner.jobs import Job, OneAfterAnother, Pool, Whole, run_jobs
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import runner_of
from bigbatch.runner.workers import WorkersRunner
from bigbatch.scaling import plan
from bigbatch.study.comparison.comparison import Arm, Comparison, comparable_scores
from bigbatch.study.comparison.expectation import FEWEST_SEEDS, expectation, seeds_asked_for
from bigbatch.study.comparison.stored import SUFFIX
from bigbatch.study.comparison.verdict import Design
from bigbatch.study.constant_prediction import constant_of
from bigbatch.tasks.task import Task
from bigbatch.train.state.result import Result

MOST_SEEDS = 14
"""Runs an arm at most, unless more are asked for: with fewer, one bad run in five can't be excluded."""


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
    only = plan(reference, global_batch=to, rule="none", can_change=can_change, overrides=_fixed_warmup(reference, can_change)).recipe
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


def _fixed_warmup(reference: Recipe, can_change: Callable[[str], bool]) -> dict[str, Any]:
    """A warm-up in updates that a script has for itself stays as it is, where only the batch changes."""
    field = "schedule.warmup.updates"
    updates = reference.get(field)
    return {} if updates is None or can_change(field) else {field: updates}


def _goes_on(comparison: Comparison, arm: Arm) -> bool:
    return not comparison.cannot_be_judged(arm) and comparison.verdict(arm).outcome == "undecided"


def _known(folder: Path, recipe: Recipe, design: Design, metric: Metric) -> list[float | None]:
    """Comparable scores of the reference's runs that are finished already."""
    places = (folder / f"seed-{seed}" / "result.json" for seed in range(recipe.seed, recipe.seed + design.max_seeds))
    return comparable_scores([Result.load(place) for place in places if place.exists()], metric)


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
