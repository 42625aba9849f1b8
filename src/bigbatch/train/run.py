"""One run on one worker: what it is made of, and what its updates change."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from bigbatch.comm.protocol import Comm
from bigbatch.comm.ranks import Ranks
from bigbatch.core.clock import Clock
from bigbatch.core.metric import Metric, metric_of
from bigbatch.noise.weight_distance import WeightDistance
from bigbatch.recipe import Recipe
from bigbatch.tasks.task import Splits, Task
from bigbatch.train.control.control import Control
from bigbatch.train.data.loader import MicroBatch
from bigbatch.train.data.shares import Work
from bigbatch.train.display.progress import Display
from bigbatch.train.measure.diagnose import check_weights
from bigbatch.train.measure.evaluate import Evaluation, evaluate
from bigbatch.train.state.agreed_flags import AgreedFlags
from bigbatch.train.state.checkpoint import HasState, Progress, save_checkpoint
from bigbatch.train.state.interrupt import Stopwatch
from bigbatch.train.state.record import Record
from bigbatch.train.update.batches import UpdateBatches
from bigbatch.train.update.running_statistics import RunningStatistics

POLL_S = 0.25
"""Seconds, about, between two looks at what only one worker knows, and between two readings of losses from the device."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a recipe is run, apart from what it trains: the keywords of `bigbatch.fit`, which explains them."""

    # the folder
    out: str | Path | None = None
    resume: bool = False
    save_every_s: float = 30.0
    keep_checkpoints: bool = False
    tensorboard: bool | None = None
    # scores
    evaluate_every: float = 1.0
    measure_test: bool = True
    target: float | None = None
    # measurements
    measure_noise: bool | Literal["layers", "norms"] = False
    measure_distance: bool = False
    # the machine
    device: str | torch.device | None = None
    compile: bool = False
    # the display
    quiet: bool = False
    title: str | None = None


@dataclass(kw_only=True)
class Run:
    """The state of a run.

    Attributes:
        progress: Where it stood when it was set up: at its beginning, or at a checkpoint.
        update: Makes one update of it, or waits for one for a moment.
        begin: Called once, before the first update, when the folder and the record are open.
        after_evaluation: Called after each.
        end_facts: Gives what the last line of the record holds besides.
        start_facts: What the first line holds besides.
        notice: Printed when a run begins that is not resumed.
        clock: Where it stands.
        best_score: Of validation, by the task's metric; minus infinity: none yet.
        reached: Whether validation has reached the target, which ends the run.
        validation: The newest evaluation of the validation set.
        work: How this worker's share of an update of so many samples is cut.
        stream: Its micro-batches, in order.
    """

    task: Task
    recipe: Recipe
    options: Options
    ranks: Ranks
    folder: Path | None
    data: Splits
    model: nn.Module
    comm: Comm
    optimizer: Optimizer
    statistics: RunningStatistics
    batches: UpdateBatches
    control: Control
    record: Record
    progress: Progress
    update: Callable[["Run"], None]
    begin: Callable[["Run"], None]
    after_evaluation: Callable[[], None] = lambda: None
    end_facts: Callable[[], dict[str, Any]] = dict
    start_facts: dict[str, Any] = field(default_factory=dict)
    notice: str = ""
    distance: WeightDistance | None = None

    forward: nn.Module = field(init=False)
    work: Callable[[int], Work] = field(init=False)
    stream: Iterator[MicroBatch] = field(init=False)
    display: Display = field(init=False)
    stopwatch: Stopwatch = field(init=False)
    flags: AgreedFlags = field(init=False)
    clock: Clock = field(init=False)
    best_score: float = field(init=False)
    reached: bool = field(init=False)
    validation: Evaluation | None = None
    last_saved: float = 0.0

    def __post_init__(self) -> None:
        self.clock, self.best_score, self.reached = self.progress.clock, self.progress.best_score, self.progress.reached
        self.forward = torch.compile(self.comm.forward) if self.options.compile else self.comm.forward  # type: ignore[assignment]
        samples = {"total": self.recipe.total_samples, "epoch": self.recipe.num_train_samples}
        self.display = Display(self.title, start=self.control.position(self.clock), quiet=self.quiet, **samples)
        self.start_timers()

    @property
    def per_worker(self) -> dict[str, HasState]:
        """What each worker has of its own, by its name in a checkpoint."""
        return {"held": self.batches, "statistics": self.statistics}

    @property
    def metric(self) -> Metric:
        """What its scores are."""
        return metric_of(self.task.metric)

    @property
    def title(self) -> str:
        """For people."""
        return self.options.title or self.task.name

    @property
    def quiet(self) -> bool:
        """Whether this worker prints nothing."""
        return self.options.quiet or not self.ranks.is_rank_0

    @property
    def micro_batch(self) -> int:
        """Most samples of a pass."""
        return self.progress.micro_batch

    @property
    def is_over(self) -> bool:
        """Whether no update follows."""
        return self.reached or self.control.is_over(self.clock)

    @property
    def save_is_due(self) -> bool:
        """Whether this worker would save now."""
        return time.monotonic() - self.last_saved >= self.options.save_every_s

    def start_timers(self) -> None:
        """Seconds count from now: of updates, since the last checkpoint, and since workers last agreed."""
        self.last_saved = time.monotonic()
        self.stopwatch = Stopwatch(self.progress.train_s)
        self.flags = AgreedFlags(self.ranks, every_s=min(POLL_S, self.options.save_every_s))
        self.control.restart_timer()

    def save(self, name: str) -> None:
        """Write a checkpoint into the folder, if there is one. Called by every worker.

        Raises:
            Diverged: If a weight is not finite.
            OutputError: If it can't be written.
        """
        if self.options.out is None:
            return
        self.control.read()
        state = Progress(self.clock, self.micro_batch, self.best_score, self.stopwatch.seconds, self.control.state_dict(), self.reached)
        parts: dict[str, Any] = {"recipe": self.recipe, "comm": self.comm, "optimizer": self.optimizer, "per_worker": self.per_worker}
        with self.comm.averaged_weights(self.optimizer), self.statistics.combined():
            check_weights(self.model, self.clock)
            save_checkpoint(self.folder and self.folder / name, progress=state, **parts)

    def evaluate(self, split: Literal["validation", "test"]) -> Evaluation:
        """Loss and score on a split, of the weights and statistics of all workers; recorded. Called by every worker."""
        with self.comm.averaged_weights(self.optimizer), self.statistics.combined():
            how: dict[str, Any] = {"recipe": self.recipe, "ranks": self.ranks, "equal_num_passes": self.comm.equal_num_passes}
            result = evaluate(self.model, self.task, getattr(self.data, split), name=f"the {split} set", **how)
        self.record.evaluation(self.clock, split, result, self.comm.metrics())
        self.after_evaluation()
        return result
