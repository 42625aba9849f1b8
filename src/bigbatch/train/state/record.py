"""What a run records: one JSON line per update and evaluation, the source of truth, and TensorBoard beside it."""

import contextlib
import json
import math
import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import torch
from torch import Tensor

from bigbatch.comm.ranks import SINGLE_PROCESS, Ranks
from bigbatch.core.checks import Diverged, OutputError, UserError
from bigbatch.core.clock import Clock
from bigbatch.core.hardware.arithmetic import arithmetic
from bigbatch.core.hardware.devices import choose_device
from bigbatch.core.metric import ACCURACY, Metric
from bigbatch.core.storage.json_lines import repair
from bigbatch.core.storage.reading import reason
from bigbatch.core.storage.writing import remedy_for, write_atomically
from bigbatch.recipe import Recipe
from bigbatch.train.measure.evaluate import Evaluation
from bigbatch.train.state.record_lines import missing_updates, read_record_lines
from bigbatch.train.state.record_lines import read_record as read_record
from bigbatch.train.state.scalars import Scalars


class _Pending(NamedTuple):
    clock: Clock
    sum_loss: Tensor
    lr: float
    num_samples: int


class Record:
    """Writes `record.jsonl` and TensorBoard events into a folder, and notices a loss that is no longer finite.

    Damaged lines of an earlier attempt are left out, with a warning, and the damaged file is kept beside the record.

    Args:
        folder: None records nothing but still checks the losses; only the first of several workers has one.
        clock: Where the run (re)starts; later lines of an earlier attempt are cut off.
        tensorboard: Whether to write TensorBoard events too; None does so where TensorBoard is installed.
        ranks: Every worker has a record, and flushes it after the same updates.
        metric: What scores are.
        whole: Whether every update has its line, so that missing ones are noticed.

    Attributes:
        begun: Whether the first line is there, or none is wanted.
    """

    def __init__(
        self,
        folder: Path | None,
        clock: Clock,
        *,
        tensorboard: bool | None,
        ranks: Ranks = SINGLE_PROCESS,
        metric: Metric = ACCURACY,
        whole: bool = True,
    ) -> None:
        self.last_loss = math.nan  # of the newest flushed update
        self.begun = folder is None and clock.updates > 0
        self._clock = clock
        self._pending: list[_Pending] = []
        self._ranks = ranks
        self._metric, self._whole = metric, whole
        self._path = folder / "record.jsonl" if folder is not None else None
        self._tensorboard = tensorboard
        self._file: IO[str] | None = None
        self._failure: OSError | None = None
        self._scalars: Scalars | None = None

    def open(self) -> Self:
        """Cut an earlier attempt's lines where the run goes on, repair them where they need to be, and begin to write.

        Raises:
            UserError: If the record can't be read, repaired or written.
        """
        if self._path is not None:
            kept = self._take_up(self._path, self._clock)
            self._scalars = Scalars(self._path.parent, self._clock, wanted=self._tensorboard)
            if self.begun and kept:
                with contextlib.suppress(UserError):  # a damaged copy of the recipe is no reason not to go on
                    self._describe(Recipe.from_saved(kept[0]["recipe"]))
            self._scalars.replay(kept)
        return self

    def _take_up(self, path: Path, clock: Clock) -> list[dict[str, Any]]:
        lines = read_record_lines(path)
        damaged = repair(path, lines) if clock.updates else None
        kept = [line for line in lines.values if not _comes_after(line, clock)] if clock.updates else []
        kept.sort(key=lambda line: line["kind"] != "start")  # the first line, wherever it went
        self.begun = bool(kept) and kept[0]["kind"] == "start"
        if kept and self._whole and (missing := missing_updates(kept, clock.updates)):
            rows = ", ".join(f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in missing)
            if damaged is None:
                warnings.warn(f"{path}: lines of updates {rows} are missing; the record goes on without them", stacklevel=3)
            told = {"kind": "repaired", "update": clock.updates, "samples": clock.samples, "missing": missing}
            kept.append({**told, "damaged": damaged})
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._open(path)
        return kept

    def _describe(self, recipe: Recipe) -> None:
        if self._scalars is not None:
            self._scalars.describe(recipe, [f"{split}/{self._score_tag}" for split in ("validation", "test")])

    @property
    def _score_tag(self) -> str:
        return "score" if self._metric.is_named else f"score ({self._metric.label})"

    def _add(self, name: str, value: float, clock: Clock) -> None:
        if self._scalars is not None:
            self._scalars.add(name, value, clock)

    def _open(self, path: Path) -> None:
        try:
            self._file = path.open("a")
        except OSError as error:
            raise self._cannot_write(path, error) from error

    def start(self, recipe: Recipe, **facts: Any) -> None:
        """First line: the recipe and the environment.

        In the middle of a run it is one that was lost, and built anew: what went before it is not known.

        Raises:
            OutputError: If it then can't be written.
        """
        where = {"environment": environment(self._ranks.device), "device": self._ranks.device.type}
        metric = {} if self._metric.is_named else {"metric": self._metric.to_plain()}
        line = {"kind": "start", "recipe": recipe.to_dict(), **where, **facts, **metric}
        if self._clock.updates and self._path is not None and self._file is not None:
            line["rebuilt_at_update"] = self._clock.updates
            warnings.warn(
                f"{self._path}: its first line is lost, or the whole file; it is built anew from the checkpoint of update "
                f"{self._clock.updates:,}, and the record goes on from there",
                stacklevel=2,
            )
            self._file.close()
            write_atomically(self._path, json.dumps(line).encode() + b"\n" + self._path.read_bytes())
            self._open(self._path)
        else:
            self._write(line)
        self.begun = True
        self._describe(recipe)

    def update(self, clock: Clock, sum_loss: Tensor, *, lr: float, num_samples: int) -> None:
        """One update of `num_samples` samples over all workers; `clock` stands after it.

        `sum_loss`, a scalar on the device and of this worker's own samples, is read by `flush`: reading each would make the device wait.
        """
        self._pending.append(_Pending(clock, sum_loss, lr, num_samples))

    def flush(self, *, fatal: bool = True) -> None:
        """Read and write the updates since the last flush.

        Args:
            fatal: Whether a loss that is not finite ends the run; else it is recorded as "lost".

        Raises:
            Diverged: If such a loss is fatal; the record ends with that update.
            OutputError: On every worker, if the disk was full at the flush before; of one worker alone, if it is now.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        own = torch.stack([p.sum_loss for p in pending])
        told = torch.cat([own, own.new_tensor([self._failure is not None])])
        *sums, failed = self._ranks.sum_(told).tolist()  # synchronises with the device, once for all
        if failed:
            self._ranks.run_on_all_ranks(self._check)
        for p, sum_loss in zip(pending, sums, strict=True):
            self.last_loss = loss = sum_loss / p.num_samples
            finite = math.isfinite(loss)
            self._write(
                {
                    "kind": "update" if finite else "diverged" if fatal else "lost",
                    "update": p.clock.updates,
                    "samples": p.clock.samples,
                    "loss": loss if finite else str(loss),
                    "lr": p.lr,
                    "global_batch": p.num_samples,
                }
            )
            if finite and self._scalars is not None:
                self._scalars.update(p.clock, loss, p.num_samples, p.lr)
            if not finite and fatal:
                self.close()
                raise Diverged(
                    f"loss = {loss} at update {p.clock.updates} (learning rate {p.lr:g}): must be finite",
                    update=p.clock.updates,
                    samples=(p.clock.samples - p.num_samples, p.clock.samples),
                )
        self.write_out()

    def reported(self, clock: Clock, loss: float | None, facts: Mapping[str, float], *, seconds: float) -> None:
        """What a function or a command tells of its training at `clock`, `seconds` after it began: its loss, and anything else by name."""
        line = {"kind": "reported", "update": clock.updates, "samples": clock.samples, "loss": loss, "seconds": round(seconds, 3)}
        self._write({**line, "facts": {name: value if math.isfinite(value) else None for name, value in facts.items()}})
        for name, value in ({**facts, "loss": loss} if loss is not None else facts).items():
            self._add(f"train/{name}", value, clock)
        self.write_out()

    def score(self, clock: Clock, split: str, score: float, *, seconds: float) -> None:
        """A score that a function or a command tells, without a loss, `seconds` after it began."""
        line = {"kind": "evaluation", "split": split, "update": clock.updates, "samples": clock.samples, "seconds": round(seconds, 3)}
        self._write({**line, "loss": None, "score": score})
        self._add(f"{split}/score ({self._metric.label})", self._metric.shown(score), clock)
        self.write_out()

    def noise(self, clock: Clock, parts: Mapping[str, tuple[float, float]]) -> None:
        """Signal and noise of one update, by part of the model; null where it told nothing."""
        told = {name: [v if math.isfinite(v) else None for v in values] for name, values in parts.items()}
        self._write({"kind": "noise", "update": clock.updates, "samples": clock.samples, "signal_and_noise": told})
        if self._scalars is not None:
            self._scalars.noise(clock, parts)

    def weight_distance(self, clock: Clock, distance: float) -> None:
        """Distance of the weights from their start, after the update at `clock`; of the first worker's own where workers' go apart."""
        self._write({"kind": "weight_distance", "update": clock.updates, "samples": clock.samples, "distance": distance})
        self._add("train/weight_distance", distance, clock)

    def curvature(self, clock: Clock, facts: Mapping[str, Any]) -> None:
        """Eigenvalues of the Hessian, largest first, and what else a look saw, after the update at `clock`."""
        self._write({"kind": "curvature", "update": clock.updates, "samples": clock.samples, **facts})
        self._add("train/top_eigenvalue", facts["eigenvalues"][0], clock)

    def batch(self, clock: Clock, before: int, after: int, reason: str) -> None:
        """A decision about the batch of the updates after `clock`."""
        line = {"kind": "batch", "update": clock.updates, "samples": clock.samples}
        self._write({**line, "before": before, "after": after, "reason": reason})
        self._add("train/global_batch", after, clock)

    def switch(self, clock: Clock, **facts: Any) -> None:
        """The end of a warm-up that ends by itself, after the updates up to `clock`."""
        self._write({"kind": "switch", "update": clock.updates, **facts})

    def staleness(self, clock: Clock, histogram: Mapping[int, int]) -> None:
        """Gradients applied so far, by the updates that they were late by."""
        counts = {str(tau): count for tau, count in sorted(histogram.items())}
        self._write({"kind": "staleness", "update": clock.updates, "samples": clock.samples, "histogram": counts})
        if counts:
            mean = sum(tau * count for tau, count in histogram.items()) / max(sum(histogram.values()), 1)
            self._add("train/staleness", mean, clock)

    def evaluation(self, clock: Clock, split: str, result: Evaluation, facts: Mapping[str, float] | None = None) -> None:
        """One evaluation at `clock`, with what the workers' way of going together has to say.

        Raises:
            Diverged: If its loss is not finite.
        """
        self.flush()
        line = {"kind": "evaluation", "split": split, "update": clock.updates, "samples": clock.samples}
        if not math.isfinite(result.loss):
            self._write({**line, "kind": "diverged", "loss": str(result.loss)})
            self.close()
            raise Diverged(f"{split} loss = {result.loss} after update {clock.updates}: must be finite")
        self._write({**line, "loss": result.loss, "score": result.score, "num_samples": result.num_samples, **(facts or {})})
        for name, value in (facts or {}).items():
            self._add(f"workers/{name}", value, clock)
        self._add(f"{split}/loss", result.loss, clock)
        score = result.score if self._metric.is_named else self._metric.shown(result.score)
        self._add(f"{split}/{self._score_tag}", score, clock)

    def end(self, clock: Clock, **facts: Any) -> None:
        """Last line."""
        self._write({"kind": "end", "update": clock.updates, "samples": clock.samples, **facts})
        self.write_out()
        self._ranks.run_on_all_ranks(self._check)
        self.close()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # it tries once more to write what it could not
                self._file.close()
            if self._failure is not None:  # of several workers, which did not come to a further flush
                warnings.warn(str(self._cannot_write(Path(self._file.name), self._failure)), stacklevel=2)
            self._file = None
        if self._scalars is not None:
            self._scalars.close()
            self._scalars = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None and self._failure is None:
            try:
                self._file.write(json.dumps(line) + "\n")
            except OSError as error:  # the buffer was full, and so is the disk
                self._failure = error

    def write_out(self) -> None:
        """Hand the buffered lines to the operating system.

        Raises:
            OutputError: If the disk is full and this worker is alone. Several learn it from the next `flush`, without an exchange more.
        """
        if self._scalars is not None:
            self._scalars.flush()
        if self._file is not None and self._failure is None:
            try:
                self._file.flush()
            except OSError as error:
                self._failure = error
        if self._ranks.world_size == 1:
            self._check()

    def _check(self) -> None:
        if self._file is not None and self._failure is not None:
            failure, self._failure = self._failure, None
            raise self._cannot_write(Path(self._file.name), failure) from failure

    @staticmethod
    def _cannot_write(path: Path, error: OSError) -> OutputError:
        return OutputError(f"can't write {path}: {reason(error)}; {remedy_for(error)}")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Where a run ran, on which device (the one that `fit` chooses, if left out); without names of hosts or users."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **arithmetic(device if device is not None else choose_device()),
    }


def _comes_after(line: dict[str, Any], clock: Clock) -> bool:
    """Whether a run that is resumed at the clock writes the line again: what came later, and what belongs to a run's end."""
    samples = line.get("samples", 0)
    decided_next = (line["kind"] == "batch" or "decides" in line) and samples == clock.samples
    return samples > clock.samples or decided_next or line["kind"] in ("end", "diverged") or line.get("split") == "test"
