"""What a study asks of a run, and what a way to run a recipe is."""

from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal, Protocol

from bigbatch.core.metric import Metric
from bigbatch.recipe import Recipe
from bigbatch.train.measure.constant_prediction import ConstantPrediction
from bigbatch.train.state.result import Result

Split = Literal["validation", "test"]
NO_CONSTANT = "{what} keeps its data and predictions to itself; compare its scores with those of a constant prediction yourself"


@dataclass(frozen=True)
class Request:
    """What a study asks of one run. The recipe holds the seed.

    Attributes:
        out: Folder of the run; None writes nothing where that is possible.
        target: End at the first validation score that is as good, or better; None goes to the end.
        evaluate_every: Epochs between evaluations on validation data, where the run lets itself be told.
        measure_test: Whether the test set is used, at the end.
        title: For people.
        quiet: Show no progress of the run itself.
        start: A checkpoint to begin from, of a branch; None begins anew.
        environment: Variables for the processes of the run, such as the GPU that it may use.
        stop: Set from outside to ask the run to end; None where signals say so.
    """

    out: Path | None = None
    target: float | None = None
    evaluate_every: float = 1.0
    measure_test: bool = True
    title: str = ""
    quiet: bool = True
    start: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()
    stop: Event | None = None


class Runner(Protocol):
    """A way to run a recipe.

    Attributes:
        name: Of what is trained.
        in_process: Whether a run computes in the process that calls it; a command has processes of its own.
        wants_folder: Whether studies give each of its runs a folder, `Request.out`.
    """

    name: str
    in_process: bool
    wants_folder: bool

    @property
    def metric(self) -> Metric:
        """What its scores are."""
        ...

    @property
    def num_test_samples(self) -> int | None:
        """Samples that a test score is the mean over; None where that is not known."""
        ...

    def can_change(self, field: str) -> bool:
        """Whether a dotted field of the recipe reaches what is run."""
        ...

    def check(self, recipe: Recipe) -> None:
        """Refuse, before anything runs, a recipe that can't be run.

        Raises:
            UserError: Saying why.
        """
        ...

    def prepare(self, recipe: Recipe) -> None:
        """Measure here, undisturbed, what runs of this recipe need to know of this machine."""
        ...

    def checkpoints(self, folder: Path) -> dict[int, Path]:
        """What the run in a folder kept to branch from, by its updates.

        Raises:
            UserError: If that is not known.
        """
        ...

    def constant_prediction(self, recipe: Recipe, *, split: Split = "test") -> ConstantPrediction:
        """The best constant output on a part of the data, to tell whether a run learnt anything.

        Raises:
            UserError: If it can't be measured, saying why.
        """
        ...

    def run(self, recipe: Recipe, request: Request) -> Result:
        """Run a recipe, or go on with it, or read the result of a finished run in `request.out`.

        Returns:
            What was measured; of a run that diverged, `Result.diverged` is True and `Result.updates` says where.

        Raises:
            RunFailed: If a function or a command fails.
            UserError: If the folder, the data or the recipe can't be used.
            Interrupted: If the run was asked to stop.
        """
        ...
