"""The training loop, whole in view.

Its order is its documentation: read the clock, run the micro-batches, clip, set the rate, step, record, and now and then evaluate
and save.
"""

import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigbatch.core.checks import Diverged, Interrupted, RecipeError
from bigbatch.core.clock import Clock
from bigbatch.core.files import write_atomically
from bigbatch.recipe import Recipe
from bigbatch.schedules.clock_lr import set_lr
from bigbatch.schedules.from_recipe import schedule_of
from bigbatch.tasks.task import Task, load_task
from bigbatch.train.build import DTYPES, build_model, build_optimizer, choose_micro_batch, seed_everything
from bigbatch.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from bigbatch.train.diagnose import check_finite, explain_divergence
from bigbatch.train.evaluate import Evaluation, evaluate
from bigbatch.train.feed import MicroBatch, feed
from bigbatch.train.folder import finished_result, open_folder
from bigbatch.train.interrupt import Stopwatch, interruptible
from bigbatch.train.micro_batch import micro_batches
from bigbatch.train.progress import Display
from bigbatch.train.record import Record
from bigbatch.train.result import Result
from bigbatch.train.sampler import index_batches
from bigbatch.train.step import accumulate_gradients


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
        evaluate_every: Epochs between evaluations on the validation set; the last update is always followed by one.
        measure_test: Whether to use the test set at the end; False while settings are being chosen (its scores are then NaN).
        save_every_s: Least seconds between two checkpoints; 0 saves after every update.
        quiet: Show no progress.
        tensorboard: Whether to write TensorBoard events into `out`.
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
    folder = open_folder(out, resume=resume)
    if (finished := finished_result(folder, recipe)) is not None:
        return finished

    data = task.splits()
    _check_size(recipe, len(data.train))  # type: ignore[arg-type]
    for name, split in data._asdict().items():
        check_finite(name, split)
    seed_everything(recipe.seed)
    model = build_model(task, recipe, place).train()
    optimizer = build_optimizer(model, recipe)
    schedule = schedule_of(recipe)
    if folder is not None and resume:
        progress = load_checkpoint(folder / "last.pt", recipe=recipe, model=model, optimizer=optimizer, device=place)
    else:
        progress = Progress(micro_batch=choose_micro_batch(task, recipe, model, data.train, place))

    clock, best_score, micro_batch = progress.clock, progress.best_score, progress.micro_batch
    total, watch = recipe.total_samples, Stopwatch(progress.train_s)

    def save(name: str) -> None:
        if folder is not None:
            _check_weights(model, clock)
            state = Progress(clock, micro_batch, best_score, watch.seconds)
            save_checkpoint(folder / name, recipe=recipe, model=model, optimizer=optimizer, progress=state)

    def measure(split: str) -> Evaluation:
        result = evaluate(model, task, getattr(data, split), precision=recipe.precision, device=place)
        record.evaluation(clock, split, result)
        return result

    record = Record(folder, clock, tensorboard=tensorboard)
    show = Display(title or task.name, total=total, start=clock.samples, epoch=recipe.num_train_samples, quiet=quiet)
    try:
        with interruptible() as interrupt, show:
            if clock.updates == 0:
                if folder is not None:
                    write_atomically(folder / "recipe.toml", recipe.to_toml().encode())
                record.start(recipe, task=task.name, micro_batch=micro_batch, device=place.type)
                save("last.pt")
            stream = _open_stream(recipe, data.train, clock, micro_batch, place)
            validation: Evaluation | None = None
            last_saved = time.monotonic()
            watch = Stopwatch(progress.train_s)
            while clock.samples < total:
                num_samples = min(recipe.batch.global_batch, total - clock.samples)
                sizes = micro_batches(num_samples, micro_batch, recipe.batch.ghost_batch)

                pieces = itertools.islice(stream, len(sizes))
                sum_loss = accumulate_gradients(model, task, pieces, num_samples=num_samples, precision=recipe.precision, device=place)
                if recipe.optimizer.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip_norm)
                set_lr(optimizer, schedule(clock))
                optimizer.step()
                optimizer.zero_grad()

                before, clock = clock, clock.after(num_samples)
                record.update(clock, sum_loss, lr=optimizer.param_groups[0]["lr"], num_samples=num_samples)

                done = clock.samples >= total
                if done or _crossed(before, clock, evaluate_every * recipe.num_train_samples):
                    with watch.paused():
                        validation = measure("validation")
                        show.evaluated(f"{task.metric} {100 * validation.score:.2f} %")
                        if validation.score > best_score:
                            best_score = validation.score
                            save("best.pt")
                show.update(clock.samples, loss=record.last_loss)
                if not done and (interrupt.is_set() or time.monotonic() - last_saved >= save_every_s):
                    with watch.paused():
                        record.flush()
                        save("last.pt")
                        last_saved = time.monotonic()
                    if interrupt.is_set():
                        raise Interrupted(_how_to_resume(clock, folder))

            train_s = watch.seconds
            save("last.pt")
            if validation is None:  # resumed after the last update
                validation = evaluate(model, task, data.validation, precision=recipe.precision, device=place)
            test = measure("test") if measure_test else Evaluation(math.nan, math.nan, 0)
        result = Result(
            task.name,
            clock.updates,
            clock.samples,
            test_score=test.score,
            test_loss=test.loss,
            validation_score=validation.score,
            best_validation_score=best_score,
            train_s=train_s,
            samples_per_s=clock.samples / train_s,
            micro_batch=micro_batch,
        )
        record.end(clock, **json.loads(result.to_json()))
        if folder is not None:
            write_atomically(folder / "result.json", result.to_json().encode())
        return result
    except Diverged as error:
        raise Diverged(explain_divergence(error, recipe, data.train, folder), update=error.update) from None
    finally:
        record.close()


def _check_size(recipe: Recipe, num_train_samples: int) -> None:
    if recipe.num_train_samples != num_train_samples:
        raise RecipeError(
            f"num_train_samples = {recipe.num_train_samples:,}: the task's training set has {num_train_samples:,}; correct the recipe"
        )


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
    return f"stopped after update {clock.updates} and saved; continue with the same command and --resume (--out {folder} --resume)"
