"""The main job: the tuned reference, the same recipe with only the batch changed, and the plan, over seeds; did accuracy hold?"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bigbatch.core.checks import Diverged, Interrupted, UserError, check_positive
from bigbatch.core.files import make_folder, write_atomically
from bigbatch.recipe import Recipe
from bigbatch.scaling import Plan, plan
from bigbatch.study.noninferiority import Verdict, noninferiority
from bigbatch.tasks.task import Task, load_task
from bigbatch.train.loop import fit
from bigbatch.train.result import Result

MARGIN_POINTS = 0.5
CONFIDENCE = 0.95
SUFFIX = ".comparison.json"


class Arm(NamedTuple):
    """One recipe over several seeds."""

    name: str  # "reference", "batch only" or the rule
    folder: str  # below the study's folder
    recipe: Recipe
    results: tuple[Result, ...]

    @property
    def scores(self) -> list[float]:
        """Test scores of the runs that did not diverge, in points (times 100)."""
        return [100 * result.test_score for result in self.results if not result.diverged]

    @property
    def num_diverged(self) -> int:
        """Runs that diverged."""
        return sum(result.diverged for result in self.results)


@dataclass(frozen=True)
class Comparison:
    """Three arms, and whether the second and third held the reference's score."""

    task: str
    metric: str
    plan: Plan
    arms: tuple[Arm, Arm, Arm]  # reference, batch only, planned
    margin: float  # points

    def verdict(self, arm: Arm) -> Verdict:
        """The non-inferiority test of an arm against the reference; an arm with diverged runs is lost.

        Against a reference that diverged itself nothing can be decided.
        """
        if self.arms[0].num_diverged:
            return Verdict("undecided", float("nan"), None, None)
        if arm.num_diverged:
            return Verdict("lost", float("nan"), None, None)
        return noninferiority(arm.scores, self.arms[0].scores, margin=self.margin, confidence=CONFIDENCE)

    def sentence(self, arm: Arm) -> str:
        """The verdict in words."""
        verdict, reference, start = self.verdict(arm), self.arms[0], f"{arm.name} at {arm.recipe.batch.global_batch:,}"
        if reference.num_diverged:
            return f"{start}: can't be judged: {reference.num_diverged} of {len(reference.results)} runs of the reference diverged; tune it"
        if arm.num_diverged:
            return f"{start}: did not hold: {arm.num_diverged} of {len(arm.results)} runs diverged"
        words = {"held": "held", "lost": "did not hold", "undecided": "undecided (run more seeds)"}[verdict.outcome]
        text = f"{start}: {words}: {verdict.difference:+.2f} points of {self.metric}"
        if verdict.lower is None or verdict.upper is None:
            return text + ", one run an arm gives no interval"
        return text + f" [{verdict.lower:+.2f}, {verdict.upper:+.2f}], margin -{self.margin:g} at {100 * CONFIDENCE:g} %"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what the report reads."""
        return {
            "task": self.task,
            "metric": self.metric,
            "margin": self.margin,
            "rule": self.plan.rule,
            "reason": self.plan.reason,
            "warnings": list(self.plan.warnings),
            "changes": [
                {"field": c.field, "before": c.before, "after": c.after, "why": c.why, "paper": c.paper.short if c.paper else ""}
                for c in self.plan.changes
            ],
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


class Row(NamedTuple):
    """One line of the table of a comparison."""

    arm: str
    global_batch: str
    score: str
    updates: str
    samples_per_s: str
    seconds: str
    diverged: str


def rows_of(comparison: Mapping[str, Any]) -> Iterator[Row]:
    """The table of a stored comparison: one row an arm, over the runs that did not diverge."""
    for arm in comparison["arms"]:
        good = [result for result in arm["results"] if not result["diverged"]]
        scores = [100 * result["test_score"] for result in good]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(good) > 1 else ""
        yield Row(
            arm["name"],
            f"{arm['global_batch']:,}",
            f"{statistics.fmean(scores):.2f}{spread} %" if good else "-",
            f"{arm['results'][0]['updates']:,}",
            f"{statistics.median(r['samples_per_s'] for r in good):,.0f}" if good else "-",
            f"{statistics.median(r['train_s'] for r in good):.1f}" if good else "-",
            f"{len(arm['results']) - len(good)} of {len(arm['results'])}",
        )


def scale(
    task: Task | str,
    *,
    to: int,
    rule: str = "auto",
    seeds: int = 3,
    recipe: Recipe | None = None,
    out: str | Path,
    margin: float = MARGIN_POINTS,
    noise_scale: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
) -> Comparison:
    """Train three arms over seeds and compare them on the test set.

    Args:
        task: A task, or its name.
        to: Global batch to scale to.
        rule: As in `plan`.
        seeds: Runs an arm; seeds 0 to seeds - 1 are added to the recipe's own.
        recipe: The tuned reference; the task's named recipe if left out.
        out: Folder of every run. Finished runs found there are used as they are, unfinished ones continued; several comparisons of
            one reference share it.
        margin: Points of the score that may be lost without calling it a loss.
        noise_scale: As in `plan`.
        overrides: As in `plan`.
        quiet: Show no progress.
        say: Called with a line of text before each run.

    Returns:
        The comparison, also written to `out`.

    Raises:
        UserError: On bad arguments, data or folder.
        Interrupted: After Ctrl-C; run the same call again to go on.
    """
    check_positive("seeds", seeds)
    check_positive("margin", margin)
    task = load_task(task) if isinstance(task, str) else task
    reference = recipe or Recipe.named(task.name)
    if to == reference.batch.global_batch:
        raise UserError(f"to = {to}: is the reference's own batch; choose another")
    planned = plan(reference, global_batch=to, rule=rule, noise_scale=noise_scale, overrides=overrides)
    only = plan(reference, global_batch=to, rule="none").recipe
    folder = make_folder(Path(out))
    arms = [
        ("reference", "reference", reference),
        ("batch only", f"batch-{to}-only", only),
        (planned.rule if planned.rule != "none" else "none (planned)", f"batch-{to}-{planned.rule}", planned.recipe),
    ]
    finished = []
    for number, (name, sub, arm_recipe) in enumerate(arms):
        results = []
        for seed in range(reference.seed, reference.seed + seeds):
            place = folder / sub / f"seed-{seed}"
            if say is not None:
                known = ", found finished" if (place / "result.json").exists() else ""
                say(f"arm {number + 1} of 3, {name}, batch {arm_recipe.batch.global_batch:,}, seed {seed}{known}")
            results.append(_run(task, arm_recipe.replace({"seed": seed}), place, name, quiet))
            if say is not None and results[-1].diverged and not known:
                say((place / "diverged.txt").read_text().strip())
        finished.append(Arm(name, sub, arm_recipe, tuple(results)))
    comparison = Comparison(task.name, task.metric, planned, (finished[0], finished[1], finished[2]), margin)
    content = json.dumps(comparison.to_dict(), indent=2).encode()
    write_atomically(folder / f"batch-{to}-{planned.rule}{SUFFIX}", content)
    return comparison


def _run(task: Task, recipe: Recipe, folder: Path, name: str, quiet: bool) -> Result:
    title = f"{name} {recipe.batch.global_batch:,} seed {recipe.seed}"
    try:
        return fit(task, recipe, out=folder, resume=(folder / "last.pt").exists(), quiet=quiet, title=title)
    except Interrupted:
        raise Interrupted(f"stopped in {title} and saved; the same command goes on from here") from None
    except Diverged as error:
        result = Result(task.name, updates=recipe.num_updates, samples=recipe.total_samples, diverged=True)
        write_atomically(folder / "result.json", result.to_json().encode())
        write_atomically(folder / "diverged.txt", f"{error}\n".encode())
        return result
