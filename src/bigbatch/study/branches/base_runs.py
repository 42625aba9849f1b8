"""Runs to branch from: of a task, with bigbatch's own checkpoints, and of a function or a command that begins from one of its own."""

import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bigbatch.core.checks import CheckpointError, UserError
from bigbatch.core.clock import Clock
from bigbatch.core.hardware.devices import choose_device
from bigbatch.recipe import Recipe
from bigbatch.runner.protocol import Request, Runner
from bigbatch.runner.task import TaskRunner
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.study.checkpoints import open_run
from bigbatch.tasks.optional_parts import splits_of
from bigbatch.tasks.task import Task
from bigbatch.train.branch import Branch, BranchResult, train_branch
from bigbatch.train.state.checkpoint import numbered_checkpoints
from bigbatch.train.state.record_lines import read_record

TOLERANCE = 0.01
"""Of a task's loss, as Merrill et al. 2025 have it."""
NEEDED = ("seed", "optimizer.lr", "batch.global_batch", "budget.samples")
"""What a function or a command must follow of a recipe to make a branch."""


class TaskRun:
    """A run of `bigbatch.fit` that kept its checkpoints (`keep_checkpoints=True`).

    Args:
        folder: Of the run.
        task: A task or its name; the run's own if left out.
        data: Folder of the data set.
        device: A torch device; a GPU if there is one, else the CPU.

    Raises:
        UserError: If the folder holds no run, or its task can't be found.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        task: Task | str | None = None,
        data: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self._run = open_run(folder, task=task, data=data, device=torch.device(device) if device is not None else choose_device())
        self.name, self.recipe = self._run.task.name, self._run.recipe
        self.global_batch, self.total_samples = self.recipe.batch.global_batch, self.recipe.total_samples
        self.notes: tuple[str, ...] = ()
        self.tolerance = TOLERANCE
        self.identity = hashlib.sha256(self.recipe.to_toml().encode()).hexdigest()[:12]
        self.num_held_out = len(splits_of(self._run.task).validation)  # type: ignore[arg-type]
        if not self.num_held_out:
            raise UserError(f"task {self.name}: has no validation data, and branches are compared by the loss on it; hold some back")

    @cached_property
    def _paths(self) -> dict[int, Path]:
        return numbered_checkpoints(self._run.folder)

    def checkpoints(self) -> dict[int, int]:
        """As `BaseRun.checkpoints`."""
        return {updates: min(updates * self.global_batch, self.total_samples) for updates in self._paths}

    def start_loss(self, updates: int, held_out: int) -> float:
        """As `BaseRun.start_loss`."""
        return self.branch(updates, Branch(samples=0, held_out=held_out)).loss

    def branch(self, updates: int, branch: Branch) -> BranchResult:
        """As `BaseRun.branch`."""
        return train_branch(self._run.task, self.recipe, self._paths[updates], branch, device=self._run.device)


class ScriptRun:
    """A run of a function or a command that kept checkpoints of its own, and can begin from one.

    A branch is a short run of its own, by a recipe whose rate is the run's at the checkpoint times the branch's factor, and falls to zero
    over the branch in a straight line; `start` (`{start}` in a command, `run.start` of a function) is the checkpoint that it begins from.
    The loss of a branch is its last validation score, as a loss.

    Args:
        runner: Of the function or command; says where its checkpoints are.
        folder: Of the run, as a study left it.
        out: Folder for the branches' own files.

    Raises:
        UserError: If the runner can't make branches, or the folder holds no run.
    """

    def __init__(self, runner: Runner, folder: str | Path, *, out: Path) -> None:
        self._runner, self._folder, self._out = runner, Path(folder), out
        self.recipe = Recipe.load(self._folder / "recipe.toml", saved=True)
        self.name, self.tolerance, self.num_held_out = runner.name, runner.metric.comparable_margin(), 0
        self.global_batch, self.total_samples = self.recipe.batch.global_batch, self.recipe.total_samples
        self.identity = hashlib.sha256(f"{self._folder.resolve()}{self.recipe.to_toml()}".encode()).hexdigest()[:12]
        self.notes: tuple[str, ...] = ()
        if not runner.can_change("schedule.decay.kind"):
            self.notes = ("the script keeps its own schedule in a branch, where its rate should fall to zero in a straight line",)
        for field in NEEDED:
            if not runner.can_change(field):
                raise UserError(f"{runner.name}: has no place for {field}, which branches change; add it to the command")

    @cached_property
    def _paths(self) -> dict[int, Path]:
        return self._runner.checkpoints(self._folder)

    def checkpoints(self) -> dict[int, int]:
        """As `BaseRun.checkpoints`."""
        return {updates: min(updates * self.global_batch, self.total_samples) for updates in self._paths}

    def start_loss(self, updates: int, held_out: int) -> float:  # noqa: ARG002 a script has data of its own
        """As `BaseRun.start_loss`: what the run told there.

        Raises:
            CheckpointError: If it told none at that update.
        """
        for line in read_record(self._folder / "record.jsonl"):
            if line["kind"] == "evaluation" and line["split"] == "validation" and line["update"] == updates:
                return -self._runner.metric.comparable(line["score"])
        raise CheckpointError(f"{self._folder}: tells no validation score at update {updates:,}, of the checkpoint; tell one at each")

    def branch(self, updates: int, branch: Branch) -> BranchResult:
        """As `BaseRun.branch`."""
        at = Clock(updates * self.global_batch, updates)
        rate = branch.rate_factor * schedule_of(self.recipe)(at)
        rates = [name for name in ("optimizer.lr", "optimizer.adam_lr") if self.recipe.get(name) is not None]
        changes = {name: rate * self.recipe.get(name) for name in rates} | {"seed": self.recipe.seed + branch.order}
        changes |= {f"budget.{unit}": None for unit in ("updates", "epochs", "tokens", "tokens_per_sample")}
        changes |= {"budget.samples": branch.samples, "batch.global_batch": branch.multiple * self.global_batch}
        changes |= {"schedule.warmup.kind": "none", "schedule.decay.kind": "linear" if branch.decays else "constant"}
        recipe = self.recipe.replace(changes)
        self._runner.check(recipe)
        digest = hashlib.sha256(f"{updates}{branch}{self.identity}".encode()).hexdigest()[:12]
        asked: dict[str, Any] = {"start": self._paths[updates], "measure_test": False, "evaluate_every": recipe.total_epochs}
        request = Request(out=self._out / "runs" / digest, **asked)
        result = self._runner.run(recipe, request)
        if not result.diverged and not math.isfinite(result.validation_score):
            raise UserError(f"{self.name}: told no validation score at a branch's end; tell one there")
        loss = math.nan if result.diverged else -self._runner.metric.comparable(result.validation_score)
        return BranchResult(loss, result.updates, branch.samples, result.train_s, diverged=result.diverged)


def find_base_run(
    folder: Path, task: str | None, *, out: Path, data: Path | None, device: str | None, find: Callable[[], Runner]
) -> TaskRun | ScriptRun:
    """The run in a folder, by what it is of.

    Args:
        folder: Of the run.
        task: As a command line names it; None for what the run's record says.
        out: Folder for the branches of a script.
        data: Folder of the data set.
        device: A torch device.
        find: Gives the runner that `task` names.

    Raises:
        UserError: If it can't be branched from.
    """
    if task is None or not (task.endswith(".toml") or ":" in task):
        return TaskRun(folder, task=task, data=data, device=device)
    runner = find()
    if isinstance(runner, TaskRunner):
        return TaskRun(folder, task=runner.task, data=data, device=device)
    return ScriptRun(runner, folder, out=out)
