"""A Python function of the user's, `train(recipe, run)`, as a way to run a recipe.

def train(recipe, run):
    model, optimizer = ..., bigbatch.build_optimizer(model, recipe)
    for update in range(recipe.num_updates):
        ...
        run.log(updates=update + 1, loss=loss.item())
    run.log(updates=recipe.num_updates, score=accuracy(model, validation))
    run.score(accuracy(model, test))

train.metric = bigbatch.Metric("accuracy", "%", "higher", margin=0.5, scale=100)
"""

import math
import re
import traceback
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from bigbatch.core.checks import Diverged, Interrupted, RunFailed, UserError, unknown
from bigbatch.core.metric import Metric, metric_of
from bigbatch.core.storage.writing import write_atomically
from bigbatch.core.users_module import import_users_module
from bigbatch.noise.monitor import NoiseScaleMonitor
from bigbatch.recipe import Recipe
from bigbatch.runner.fields import allows, files_by_updates
from bigbatch.runner.log import CHECKPOINTS, RunLog, TargetReached, held, open_run, required_folder
from bigbatch.runner.protocol import NO_CONSTANT, Request, Split
from bigbatch.train.measure.constant_prediction import ConstantPrediction
from bigbatch.train.state.interrupt import interruptible
from bigbatch.train.state.result import Result

Function = Callable[[Recipe, "FunctionRun"], Any]


class FunctionRun:
    """What a function gets beside its recipe: where to tell how training goes, and where to keep its files.

    Attributes:
        evaluate_every: Epochs between evaluations on validation data, as the study asks for them.
        target: The validation score at which the run ends; None for one that goes to its end.
        measure_test: Whether the test score is wanted.
        start: A checkpoint of another run to begin from, with a clock at zero; None to begin anew.
    """

    def __init__(self, log: RunLog, request: Request, what: str) -> None:
        self.evaluate_every, self.target, self.measure_test = request.evaluate_every, request.target, request.measure_test
        self.start = request.start
        self._log, self._request, self._what, self._monitor = log, request, what, None

    @property
    def checkpoint_dir(self) -> Path:
        """A folder of the run's own; what an interrupted run left there is there again when it goes on."""
        folder = required_folder(self._request, self._what) / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        return folder

    def log(
        self,
        *,
        updates: float | None = None,
        samples: float | None = None,
        loss: float | None = None,
        score: float | None = None,
        **more: float,
    ) -> None:
        """Tell where the run stands, in updates or samples, with its training loss, its score on validation data, and anything else.

        Raises:
            Exception: At a loss or score that is not finite, at the target, or when the run is asked to stop: let it through.
        """
        if self._request.stop is not None and self._request.stop.is_set():
            raise Interrupted(f"stopped in {self._request.title or self._what}; the same command goes on with it")
        self._log.log(updates=updates, samples=samples, loss=loss, score=score, **more)
        if self._monitor is not None:
            self._log.noise([{name: (s.signal, s.noise) for name, s in measured.parts.items()} for measured in self._monitor.flush()])

    def score(self, value: float) -> None:
        """Tell the score of the final weights on the test set."""
        self._log.score(value)

    def noise(self, monitor: NoiseScaleMonitor) -> None:
        """Record what a monitor measures. It is read at each `log`: the newest of its updates is taken for the one that is logged."""
        self._monitor = monitor  # type: ignore[assignment]


class FunctionRunner:
    """Runs recipes by a function.

    Args:
        function: Called as `function(recipe, run)`; its return value is the test score where it told none by `run.score`.
        metric: What scores are; the function's attribute `metric` if left out.
        can: What of a recipe it follows, as in `bigbatch.runner.fields`; everything if left out, or the function's attribute `can`.
        name: Of what is trained; the function's if left out.
        num_test_samples: That a test score is the mean over; None where that is not known.

    Raises:
        UserError: If the metric is missing or is none.
    """

    in_process = True
    wants_folder = True

    def __init__(
        self,
        function: Function,
        *,
        metric: Any = None,
        can: Collection[str] | None = None,
        name: str | None = None,
        num_test_samples: int | None = None,
    ) -> None:
        stated = metric if metric is not None else getattr(function, "metric", None)
        self.name: str = str(name or getattr(function, "__name__", type(function).__name__))
        if stated is None:
            raise UserError(
                f"function {self.name}: states no metric; give one, or set {self.name}.metric = "
                "bigbatch.Metric(name, unit, better, margin=...)"
            )
        self._function, self._metric = function, metric_of(stated)
        self._can = can if can is not None else getattr(function, "can", None)
        self.num_test_samples = num_test_samples
        self.identity = {"function": _identity(function)}

    @property
    def metric(self) -> Metric:
        """As it was given."""
        return self._metric

    def can_change(self, field: str) -> bool:
        """Whether the function follows a field."""
        return self._can is None or allows(self._can, field)

    def check(self, recipe: Recipe) -> None:
        """Nothing is known before the function runs."""

    def prepare(self, recipe: Recipe) -> None:
        """There is nothing to measure."""

    def checkpoints(self, folder: Path) -> dict[int, Path]:
        """By the function's attribute `checkpoint`, such as "{updates}.pt", a name in `run.checkpoint_dir`.

        Raises:
            UserError: If it has none.
        """
        pattern = getattr(self._function, "checkpoint", None)
        if pattern is None:
            raise UserError(
                f'function {self.name}: does not say where its checkpoints are; set {self.name}.checkpoint = "{{updates}}.pt", a name in '
                "run.checkpoint_dir, and begin from run.start where it is not None"
            )
        return files_by_updates(folder / CHECKPOINTS, str(pattern))

    def constant_prediction(self, recipe: Recipe, *, split: Split = "test") -> ConstantPrediction:  # noqa: ARG002
        """There is none: the function's predictions and data are its own."""
        raise UserError(NO_CONSTANT.format(what="a function"))

    def run(self, recipe: Recipe, request: Request) -> Result:
        """As `Runner.run`."""
        if (finished := open_run(recipe, request, self.identity)) is not None:
            return finished
        with held(request):
            return self._run(recipe, request)

    def _run(self, recipe: Recipe, request: Request) -> Result:
        log = RunLog(self.name, recipe, request, self._metric)
        try:
            with interruptible(request.out) as asked:
                stop = request.stop or asked
                run = FunctionRun(log, Request(**{**vars(request), "stop": stop}), f"function {self.name}")
                returned = self._function(recipe, run)
                if not math.isfinite(log.test) and request.measure_test and hasattr(returned, "__float__"):
                    log.score(returned)
        except TargetReached:
            return log.end()
        except Diverged as error:
            return log.end(diverged=error)
        except (Interrupted, KeyboardInterrupt, RunFailed):
            log.close()
            raise
        except Exception as error:
            log.close()
            raise RunFailed(self._failure(error, request)) from error
        if request.measure_test and not math.isfinite(log.test):
            log.close()
            raise RunFailed(f"function {self.name}: ended without a score; call run.score(value), or return it")
        if request.target is not None and not math.isfinite(log.validation):
            log.close()
            raise RunFailed(f"function {self.name}: told no validation score, which a target needs; call run.log(updates=..., score=...)")
        return log.end()

    def _failure(self, error: Exception, request: Request) -> str:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"function {self.name}: {type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        if request.out is not None:
            path = request.out / "failed.txt"
            write_atomically(path, traceback.format_exc().encode())
            told += f"; the traceback is in {path}"
        return told


def _identity(function: Any) -> str:
    """What is called, and with what it is called where that is set beforehand; without addresses, which are others each time."""
    if isinstance(function, partial):
        given = ", ".join([*map(repr, function.args), *(f"{name}={value!r}" for name, value in sorted(function.keywords.items()))])
        return re.sub(r" at 0x[0-9a-f]+", "", f"{_identity(function.func)}({given})")
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def load_function(name: str) -> Function:
    """A function by `module:function`; the current folder is searched too.

    Raises:
        UserError: If there is none.
    """
    module_name, _, function_name = name.partition(":")
    module = import_users_module(f"function {name!r}", module_name)
    found = getattr(module, function_name, None)
    if not callable(found):
        raise UserError(f"function {name!r}: " + unknown(f"function in {module_name}", function_name, _functions(module)))
    function: Function = found
    return function


def _functions(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
