"""The training loop, whole in view.

Its order is its documentation: read the clock, choose the batch, run the micro-batches, clip, set the rate, step, record,
and now and then evaluate and save.
"""

import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from bigbatch.core.checks import CheckpointError, Diverged, Interrupted, OutputError, RecipeError
from bigbatch.core.clock import Clock
from bigbatch.core.files import make_folder, remove_leftovers, write_atomically
from bigbatch.recipe import Recipe
from bigbatch.schedules.clock_lr import set_lr
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.tasks.task import Task, load_task
from bigbatch.train.build import DTYPES, build_model, build_optimizer, seed_everything
from bigbatch.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from bigbatch.train.diagnose import check_finite, explain_divergence
from bigbatch.train.evaluate import Evaluation, evaluate
from bigbatch.train.feed import MicroBatch, feed
from bigbatch.train.micro_batch import fastest_micro_batch, micro_batches
from bigbatch.train.progress import Display
from bigbatch.train.record import Record
from bigbatch.train.sampler import index_batches, sample_indices
from bigbatch.train.step import accumulate_gradients


@dataclass(frozen=True)
class Result:
    """What a finished run measured. Scores are means over a split, in [0, 1]; accuracy for the shipped tasks. NaN: not measured."""

    task: str
    updates: int
    samples: int
    test_score: float = math.nan
    test_loss: float = math.nan
    validation_score: float = math.nan  # of the final weights
    best_validation_score: float = math.nan
    train_s: float = math.nan  # seconds in updates, without evaluation and saving
    samples_per_s: float = math.nan
    micro_batch: int = 0
    diverged: bool = False  # True only in studies, which go on after a diverged run

    def to_json(self) -> str:
        """JSON text; NaN as null."""
        return json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {k: math.nan if v is None else v for k, v in json.loads(text).items()}
        return cls(**fields)


def fit(
    task: Task | str,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    evaluate_every: float = 1.0,
    measure_test: bool = True,
    save_every_s: float = 30.0,
    quiet: bool = False,
    tensorboard: bool = True,
    device: str | torch.device | None = None,
    title: str | None = None,
) -> Result:
    """Train a task by a recipe and measure it on the test set, once, with the final weights.

    Args:
        task: A task, or its name (see `bigbatch tasks`, or `module:Class`).
        recipe: What to run; the task's named recipe if left out.
        out: Folder for `record.jsonl`, TensorBoard events, `last.pt`, `best.pt` (by validation), `recipe.toml` and `result.json`;
            None writes nothing.
        resume: Continue the run in `out`; it ends in the same weights, bit for bit, as one that was never stopped. A finished run's
            result is returned as it is.
        evaluate_every: Epochs between evaluations on the validation set.
        measure_test: Whether to use the test set at the end; False while settings are being chosen (the scores are then NaN).
        save_every_s: Least seconds between two checkpoints; 0 saves after every update.
        quiet: Show no progress.
        tensorboard: Whether to write TensorBoard events.
        device: A torch device; the first GPU if there is one, else the CPU.
        title: What the progress display calls the run.

    Returns:
        The result.

    Raises:
        UserError: If the task, recipe, data, checkpoint or folder can't be used.
        Diverged: If the loss or the weights stop being finite; the record and the last good checkpoint are kept.
        Interrupted: After Ctrl-C or SIGTERM, once the state is saved.
    """
    task = load_task(task) if isinstance(task, str) else task
    recipe = recipe or Recipe.named(task.name)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder = _prepare_folder(out, resume)
    if folder is not None and resume and (folder / "result.json").exists():
        return _finished_result(folder, recipe)

    data = task.splits()
    _check_size(recipe, len(data.train))  # type: ignore[arg-type]
    for name, split in data._asdict().items():
        check_finite(name, split)
    seed_everything(recipe.seed)
    model = build_model(task, recipe, place)
    optimizer = build_optimizer(model, recipe)
    schedule = schedule_of(recipe)
    if folder is not None and resume:
        progress = load_checkpoint(folder / "last.pt", recipe=recipe, model=model, optimizer=optimizer, device=place)
    else:
        progress = Progress(micro_batch=_choose_micro_batch(task, recipe, model, data.train, place))
    clock, best_score, train_s = progress.clock, progress.best_score, progress.train_s
    record = Record(folder, clock, tensorboard=tensorboard)
    if clock.updates == 0:
        if folder is not None:
            write_atomically(folder / "recipe.toml", recipe.to_toml().encode())
        record.start(recipe, task=task.name, micro_batch=progress.micro_batch, device=place.type)

    total, ghost_batch, validation = recipe.total_samples, recipe.batch.ghost_batch, None
    stream = _open_stream(recipe, data.train, clock, progress.micro_batch, place)
    last_saved, model = time.monotonic(), model.train()

    def save(name: str) -> None:
        _check_weights(model, clock)
        assert folder is not None
        state = Progress(clock, progress.micro_batch, best_score, train_s)
        save_checkpoint(folder / name, recipe=recipe, model=model, optimizer=optimizer, progress=state)

    show = Display(
        title or task.name, total_samples=total, start_samples=clock.samples, num_train_samples=recipe.num_train_samples, quiet=quiet
    )
    try:
        if folder is not None and clock.updates == 0:
            save("last.pt")
        with _interruptible() as interrupt, show:
            while clock.samples < total:
                began = time.perf_counter()
                num_samples = min(recipe.batch.global_batch, total - clock.samples)
                sizes = micro_batches(num_samples, progress.micro_batch, ghost_batch)

                pieces = itertools.islice(stream, len(sizes))
                loss = accumulate_gradients(model, task, pieces, num_samples=num_samples, precision=recipe.precision, device=place)
                if recipe.optimizer.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
                set_lr(optimizer, schedule(clock))
                optimizer.step()
                optimizer.zero_grad()

                before, clock = clock, clock.after(num_samples)
                lr = optimizer.param_groups[0]["lr"]
                record.update(clock, loss, lr=lr, num_samples=num_samples)
                train_s += time.perf_counter() - began

                score = None
                if _crossed(before, clock, evaluate_every * recipe.num_train_samples) or clock.samples >= total:
                    validation = evaluate(model, task, data.validation, precision=recipe.precision, device=place)
                    record.evaluation(clock, "validation", validation)
                    score = f"{task.metric} {100 * validation.score:.2f} %"
                    if validation.score > best_score:
                        best_score = validation.score
                        if folder is not None:
                            save("best.pt")
                show.update(clock.samples, loss=record.last_loss, score=score)
                done = clock.samples >= total
                if folder is not None and (done or interrupt.is_set() or time.monotonic() - last_saved >= save_every_s):
                    record.flush()
                    save("last.pt")
                    last_saved = time.monotonic()
                if interrupt.is_set() and not done:
                    raise Interrupted(_how_to_resume(clock, folder))

        if validation is None:  # resumed from a checkpoint of the very end
            validation = evaluate(model, task, data.validation, precision=recipe.precision, device=place)
        test = Evaluation(math.nan, math.nan, 0)
        if measure_test:
            test = evaluate(model, task, data.test, precision=recipe.precision, device=place)
            record.evaluation(clock, "test", test)
        result = Result(
            task=task.name,
            test_score=test.score,
            test_loss=test.loss,
            validation_score=validation.score,
            best_validation_score=best_score,
            updates=clock.updates,
            samples=clock.samples,
            train_s=train_s,
            samples_per_s=clock.samples / train_s if train_s else math.nan,
            micro_batch=progress.micro_batch,
        )
        record.end(clock, **json.loads(result.to_json()))
        if folder is not None:
            write_atomically(folder / "result.json", result.to_json().encode())
        return result
    except Diverged as error:
        raise Diverged(explain_divergence(error, recipe, data.train, folder), update=error.update) from None
    finally:
        record.close()


def _prepare_folder(out: str | Path | None, resume: bool) -> Path | None:
    if out is None:
        if resume:
            raise CheckpointError("resume = True: there is no folder to resume from; give the run's folder as --out")
        return None
    folder = Path(out)
    if resume and not (folder / "last.pt").exists() and not (folder / "result.json").exists():
        raise CheckpointError(f"{folder}: holds no run to resume (no last.pt); check --out, or start the run without --resume")
    if not resume and (folder / "last.pt").exists():
        raise OutputError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")
    make_folder(folder)
    remove_leftovers(folder)
    return folder


def _finished_result(folder: Path, recipe: Recipe) -> Result:
    differing = recipe.differences(Recipe.load(folder / "recipe.toml"))
    if differing:
        raise CheckpointError(f"{folder}: holds a finished run of another recipe ({'; '.join(differing)}); choose another --out")
    return Result.from_json((folder / "result.json").read_text())


def _check_size(recipe: Recipe, num_train_samples: int) -> None:
    if recipe.num_train_samples != num_train_samples:
        raise RecipeError(
            f"num_train_samples = {recipe.num_train_samples:,}: the task's training set has {num_train_samples:,}; correct the recipe"
        )


def _choose_micro_batch(task: Task, recipe: Recipe, model: nn.Module, train: Any, device: torch.device) -> int:
    batch = recipe.batch
    if isinstance(batch.micro_batch, int):
        return batch.micro_batch
    if batch.ghost_batch == "global":
        return batch.global_batch

    def forward_backward(copied: nn.Module, size: int) -> None:
        index = sample_indices(recipe.seed, recipe.num_train_samples, 0, size)
        pieces = feed(train, [index], device=device, dtype=DTYPES[recipe.precision])
        copied.zero_grad()
        accumulate_gradients(copied, task, pieces, num_samples=size, precision=recipe.precision, device=device)

    key = f"{task.name} {sorted(recipe.model.items())} {recipe.precision} ghost {batch.ghost_batch} {device}"
    return fastest_micro_batch(forward_backward, model, global_batch=batch.global_batch, ghost_batch=batch.ghost_batch, key=key)


def _open_stream(recipe: Recipe, train: Any, clock: Clock, micro_batch: int, device: torch.device) -> Iterator[MicroBatch]:
    """Every micro-batch from `clock` to the end of the run."""
    total, global_batch = recipe.total_samples, recipe.batch.global_batch

    def sizes() -> Iterator[int]:
        for start in range(clock.samples, total, global_batch):
            yield from micro_batches(min(global_batch, total - start), micro_batch, recipe.batch.ghost_batch)

    batches = index_batches(recipe.seed, recipe.num_train_samples, clock.samples, sizes())
    return feed(train, batches, device=device, dtype=DTYPES[recipe.precision])


def _crossed(before: Clock, after: Clock, every_samples: float) -> bool:
    return after.samples // every_samples > before.samples // every_samples


def _check_weights(model: nn.Module, clock: Clock) -> None:
    """Never save weights that are no longer finite: the last good checkpoint must stay good."""
    for name, p in model.named_parameters():
        if not bool(torch.isfinite(p).all()):
            raise Diverged(f"weights {name} are no longer finite after update {clock.updates}", update=clock.updates)


def _how_to_resume(clock: Clock, folder: Path | None) -> str:
    if folder is None:
        return f"stopped after update {clock.updates}; nothing was saved: no --out was given"
    return f"stopped after update {clock.updates} and saved; continue with the same command and --resume (or --out {folder} --resume)"


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a flag that is read between updates; a second Ctrl-C stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
