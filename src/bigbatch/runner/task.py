"""A task, trained by `bigbatch.fit`."""

from pathlib import Path
from typing import Any

from bigbatch.comm.ranks import Ranks
from bigbatch.core.checks import Diverged, Interrupted
from bigbatch.core.hardware.devices import choose_device
from bigbatch.core.metric import Metric, metric_of
from bigbatch.recipe import Recipe
from bigbatch.runner.function import FunctionRunner
from bigbatch.runner.log import store_result
from bigbatch.runner.protocol import Request, Runner, Split
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.tasks.task import Task, load_task
from bigbatch.train.measure.constant_prediction import ConstantPrediction, constant_prediction
from bigbatch.train.setup.build import build_model, choose_micro_batch, seed_everything
from bigbatch.train.state.checkpoint import numbered_checkpoints
from bigbatch.train.state.result import Result
from bigbatch.train.trainer import fit


class TaskRunner:
    """Runs recipes of a task.

    Args:
        task: What is trained.
        options: Further keywords of `fit`.
    """

    in_process = True
    wants_folder = False

    def __init__(self, task: Task, **options: Any) -> None:
        self.task, self.name, self.options = task, task.name, options

    @property
    def metric(self) -> Metric:
        """The task's."""
        return metric_of(self.task.metric)

    @property
    def num_test_samples(self) -> int:
        """Of the task's test set."""
        return len(self.task.splits().test)  # type: ignore[arg-type]

    def can_change(self, field: str) -> bool:  # noqa: ARG002
        """Every field reaches `fit`."""
        return True

    def check(self, recipe: Recipe) -> None:
        """Nothing is known before the run is set up."""

    def prepare(self, recipe: Recipe) -> None:
        """Time sizes of micro-batches, unless they are remembered."""
        if recipe.batch.micro_batch != "auto":
            return
        train = splits_of(self.task).train
        seed_everything(recipe.seed)
        ranks = Ranks(0, 1, choose_device())
        choose_micro_batch(self.task, recipe, build_model(self.task, recipe, ranks.device).train(), train, ranks)

    def checkpoints(self, folder: Path) -> dict[int, Path]:
        """Those that `fit(keep_checkpoints=True)` kept."""
        return numbered_checkpoints(folder)

    def constant_prediction(self, recipe: Recipe, *, split: Split = "test") -> ConstantPrediction:
        """Of a part of the task's data."""
        dataset = getattr(splits_of(self.task), split)
        return constant_prediction(self.task, recipe, dataset, device=choose_device(self.options.get("device")))

    def run(self, recipe: Recipe, request: Request) -> Result:
        """As `Runner.run`; an unfinished run is continued from its checkpoint."""
        try:
            return fit(self.task, recipe, **self.settings(request))
        except Interrupted:
            raise self.interrupted(request) from None
        except Diverged as error:
            return self.diverged(error, recipe, request)

    def settings(self, request: Request) -> dict[str, Any]:
        """Keywords of `fit`."""
        out = request.out
        settings: dict[str, Any] = {"out": out, "resume": out is not None and (out / "last.pt").exists()}
        settings |= {"target": request.target, "evaluate_every": request.evaluate_every, "measure_test": request.measure_test}
        settings |= {"quiet": request.quiet, "title": request.title or None}
        if out is None:
            settings["tensorboard"] = False
        return {**settings, **self.options}

    def interrupted(self, request: Request) -> Interrupted:
        """What to say of a run that was asked to stop."""
        where = request.title or self.name
        if request.out is not None and (request.out / "last.pt").exists():
            return Interrupted(f"stopped in {where} and saved; the same command goes on from here")
        return Interrupted(f"stopped at {where}; finished runs are kept, and the same command goes on with this one")

    def diverged(self, error: Diverged, recipe: Recipe, request: Request) -> Result:
        """The result of a run that has diverged, kept in its folder."""
        result = Result(self.name, updates=error.update or recipe.num_updates, samples=recipe.total_samples, diverged=True)
        store_result(result, request.out, why=error)
        return result


def runner_of(given: Any) -> Runner:
    """The way to run that a study was given.

    Args:
        given: A task, its name, a function `train(recipe, run)` with an attribute `metric`, or a runner, which is returned as it is.
    """
    if isinstance(given, str):
        return TaskRunner(load_task(given))
    if all(hasattr(given, name) for name in ("run", "can_change", "metric")):
        runner: Runner = given
        return runner
    return FunctionRunner(given) if callable(given) and not hasattr(given, "splits") else TaskRunner(given)
