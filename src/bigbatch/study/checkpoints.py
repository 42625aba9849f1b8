"""The models that runs left behind: opened from their folders, and two of them chosen where their losses match.

Curvature goes with the loss: near the end of training both fall. So two runs are compared where they have learnt as much, not at their
ends: of all pairs of checkpoints that they kept, at the one with the lowest losses that are alike.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigbatch.core.checks import CheckpointError, UserError
from bigbatch.core.clock import Clock
from bigbatch.core.storage.reading import exists
from bigbatch.core.tensors.structure import call_model
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Task, load_task
from bigbatch.train.measure.evaluate import sum_over_samples
from bigbatch.train.measure.task_loss import CountedBatch
from bigbatch.train.setup.build import build_model
from bigbatch.train.state.checkpoint import checkpoints_of, read_checkpoint
from bigbatch.train.state.record_lines import read_record

MATCHED = 1.1
"""Two losses match up to this ratio."""


@dataclass(frozen=True)
class RunFolder:
    """A run that left checkpoints."""

    folder: Path
    recipe: Recipe
    task: Task
    device: torch.device

    @property
    def checkpoints(self) -> list[Path]:
        """Those that were kept, the best and the last."""
        return checkpoints_of(self.folder)

    @property
    def name(self) -> str:
        """For tables: the folder's."""
        return self.folder.name or str(self.folder.resolve().name)

    def load(self, path: Path) -> tuple[nn.Module, Clock]:
        """A checkpoint's model, with the weights and statistics that were saved, and where the run then stood.

        Raises:
            CheckpointError: If it can't be read, or holds another model.
        """
        state = read_checkpoint(path, self.device, model_only=True)
        model = build_model(self.task, self.recipe, self.device).eval()
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"checkpoint {path}: does not fit the model of task {self.task.name} ({_first_line(error)}); give the task that it was "
                "trained on"
            ) from None
        return model, Clock(*state["progress"][0])


class Candidate(NamedTuple):
    """A checkpoint that could be looked at."""

    path: Path
    loss: float


def open_run(folder: str | Path, *, task: Task | str | None = None, data: str | Path | None = None, device: torch.device) -> RunFolder:
    """The run in a folder.

    Args:
        folder: As `fit` or `bigbatch train` wrote it.
        task: A task or its name, where the run's record has a name that can't be found: a task of your own.
        data: Folder of the data set.
        device: Where models go.

    Raises:
        UserError: If the folder holds no checkpoint or no recipe, or the task can't be found.
    """
    folder = Path(folder)
    if not exists(folder) or not checkpoints_of(folder):
        raise CheckpointError(f"{folder}: holds no checkpoint (last.pt, best.pt, update-*.pt); name the --out folder of `bigbatch train`")
    recipe = Recipe.load(folder / "recipe.toml", saved=True)
    if task is None:
        task = next((line["task"] for line in read_record(folder / "record.jsonl") if line["kind"] == "start"), recipe.task)
    return RunFolder(folder, recipe, load_task(task, data=data) if isinstance(task, str) else task, device)


def check_comparable(run: RunFolder, other: RunFolder) -> None:
    """Refuse runs that trained different things.

    Raises:
        UserError: With what differs.
    """
    if run.task.name != other.task.name:
        raise UserError(f"{other.folder}: is of task {other.task.name}, {run.folder} of {run.task.name}; compare runs of one task")
    mine, theirs = ({name: t.shape for name, t in build_model(r.task, r.recipe, r.device).named_parameters()} for r in (run, other))
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing:
        raise UserError(
            f"{other.folder}: has another model than {run.folder} (they differ in {len(differing)} of {len(mine)} parameters, such as "
            f"{differing[0]}); compare runs with the same [model]"
        )


def match(first: Sequence[Candidate], second: Sequence[Candidate]) -> tuple[Candidate, Candidate]:
    """A checkpoint of each of two runs: the lowest losses of those that match; the nearest ones, if none do.

    >>> one, other = ([Candidate(Path(f"{loss}"), loss) for loss in losses] for losses in ((0.5, 0.3), (0.52, 0.31, 0.01)))
    >>> [c.loss for c in match(one, other)]
    [0.3, 0.31]
    """
    pairs = list(itertools.product(first, second))
    matching = [(a, b) for a, b in pairs if ratio(a.loss, b.loss) <= MATCHED]
    if matching:
        return min(matching, key=lambda pair: pair[0].loss * pair[1].loss)
    return min(pairs, key=lambda pair: ratio(pair[0].loss, pair[1].loss))


def ratio(a: float, b: float) -> float:
    """The larger over the smaller, 1 or more; infinite where one is zero or not finite.

    >>> ratio(2.0, 8.0)
    4.0
    """
    low, high = sorted((a, b))
    return high / low if low > 0 and math.isfinite(high) else math.inf


@torch.no_grad()
def mean_of(measure: Callable[[Any, Any], Tensor], model: nn.Module, batches: Sequence[CountedBatch]) -> float:
    """Mean over all samples of a loss or score per sample, in evaluation mode, which is left as found.

    Raises:
        UserError: If there is not one a sample.
    """
    was_training, total = model.training, 0.0
    model.eval()
    for inputs, targets, n in batches:
        total += float(sum_over_samples(measure(call_model(model, inputs), targets), n, "losses or scores"))
    model.train(was_training)
    return total / sum(n for *_, n in batches)


def state_of(model: nn.Module) -> Mapping[str, Any]:
    """Weights and statistics, copied."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return (lines[1] if len(lines) > 1 else lines[0])[:160]
