"""The critical batch for several targets on the way, from the same runs: what branches are compared with.

    python studies/critical_batch/targets.py fashion_mnist/mlp --targets 0.42 0.37 0.34 --batches 32 128 512 2048 --factors 0.25 0.5 1
    python studies/critical_batch/targets.py fashion_mnist/cnn --targets 0.35 0.29 0.25 --batches 32 128 512 --factors 0.25 0.5
    python studies/critical_batch/targets.py text/gpt --targets 2.0 1.8 1.65 --batches 16 64 --factors 0.25 0.5 --every 0.05 --max-epochs 1

As run.py: the named recipe at a constant rate after 10 updates of warm-up, from its rate times the root of the multiple; factors of two are
tried from the middle outwards on one seed, and the range moves up to two steps where its edge is best for the last target; a run ends at
the last target, where it can no longer be the first there, or after --max-epochs. At every target each batch counts with the rate that was
first there. Between two targets, the difference of updates is fitted: the critical batch at that point of training, as branches have it,
and not the mean of all before.
Targets are of the validation loss, which branches are compared by. Appends a line a run to `<task>-targets.jsonl` beside this script, so it
can be stopped and continued, and writes the fits to `<task>-targets.json`.
"""

import argparse
import contextlib
import itertools
import json
import math
import subprocess
import tempfile
from pathlib import Path

import torch

from bigbatch import Recipe, fit
from bigbatch.core.checks import Diverged, UserError
from bigbatch.core.storage.json_lines import append_line, readable_lines
from bigbatch.noise.critical_batch import Run, fit_critical_batch
from bigbatch.train.state.record import environment, read_record

HERE = Path(__file__).parent
WARMUP_UPDATES, EXTENSIONS = 10, 2


def recipe_at(reference, batch, factor, epochs):
    k = batch / reference.batch.global_batch
    rates = [name for name in ("optimizer.lr", "optimizer.adam_lr") if reference.get(name) is not None]
    warmup = {"kind": "gradual", "epochs": WARMUP_UPDATES * batch / reference.num_train_samples, "start_factor": 1 / WARMUP_UPDATES}
    changes = {f"schedule.warmup.{name}": value for name, value in warmup.items()}
    changes |= {name: factor * math.sqrt(k) * reference.get(name) for name in rates}
    return reference.replace(changes | {"schedule.decay.kind": "constant", "batch.global_batch": batch, "budget.epochs": epochs})


def curve_of(task, recipe, every, last):
    """Pairs of updates and validation loss, until the loss is at the last target."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        # the score of the shipped language models is their loss; others end by their budget
        target = {"target": last} if recipe.task.startswith("text/") else {}
        how = {"evaluate_every": every, "measure_test": False, "quiet": True, "tensorboard": False, "save_every_s": 1e9}
        with contextlib.suppress(Diverged):
            fit(task, recipe, out=out, **how, **target)
        lines = read_record(out / "record.jsonl")
    return [(line["update"], line["loss"]) for line in lines if line["kind"] == "evaluation"]


def first_at(curve, target):
    """Updates at which a curve first is at the target, between evaluations in a straight line; None: never."""
    before = None
    for updates, loss in curve:
        if loss <= target:
            if before is None or before[1] == loss:
                return updates
            return before[0] + (updates - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (updates, loss)
    return None


def fit_of(updates):
    """The critical batch of updates by batch, as plain values; of two batches the formula's own, without an interval."""
    if len(updates) == 2:
        (small, many), (large, few) = sorted(updates.items())
        samples = (many - few) / (1 / small - 1 / large)
        steps = many - samples / small
        value = {"value": samples / steps if steps > 0 else None, "lower": None, "upper": None}
        return {"critical_batch": value, "updates": {str(batch): at for batch, at in sorted(updates.items())}}
    try:
        fitted = fit_critical_batch([Run(batch, at, True) for batch, at in sorted(updates.items())])
        found = {name: getattr(fitted, name)._asdict() for name in ("critical_batch", "min_steps", "min_samples")}
    except UserError as error:
        found = {"error": str(error)}
    return {**found, "updates": {str(batch): at for batch, at in sorted(updates.items())}}


def study(arguments):
    reference = Recipe.named(arguments.task)
    path = HERE / f"{arguments.task.replace('/', '-')}-targets.jsonl"
    done = {(line["batch"], line["factor"]): line for line in readable_lines(path)} if path.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    last = min(arguments.targets)
    for batch in arguments.batches:
        factors, tried = list(arguments.factors), {}
        for extension in range(EXTENSIONS + 1):
            for factor in sorted(factors, key=lambda f: (abs(math.log(f)), f)):
                if factor in tried:
                    continue
                if (batch, factor) not in done:
                    best = min((at for curve in tried.values() if (at := first_at(curve, last)) is not None), default=math.inf)
                    epochs = min(arguments.max_epochs, 1.1 * best * batch / reference.num_train_samples)
                    recipe = recipe_at(reference, batch, factor, epochs)
                    curve = curve_of(arguments.task, recipe, arguments.every, last)
                    line = {"batch": batch, "factor": factor, "lr": recipe.optimizer.lr, "epochs": epochs, "curve": curve}
                    done[batch, factor] = line | {"commit": commit, "environment": environment()}
                    append_line(path, done[batch, factor])
                tried[factor] = done[batch, factor]["curve"]
                print(batch, factor, [first_at(tried[factor], target) for target in arguments.targets], flush=True)
            best = min(tried, key=lambda f: (first_at(tried[f], last) or math.inf, min((loss for _, loss in tried[f]), default=math.inf)))
            if extension == EXTENSIONS or best not in (min(tried), max(tried)):
                break
            factors = [best / 2 if best == min(tried) else 2 * best]
    fits, reached = {}, []
    for target in sorted(arguments.targets, reverse=True):
        fastest = {}
        for (batch, factor), line in done.items():
            if (at := first_at(line["curve"], target)) is not None and at < fastest.get(batch, (math.inf,))[0]:
                fastest[batch] = at, factor
        reached.append((target, {batch: at for batch, (at, _) in fastest.items()}))
        fits[str(target)] = fit_of(reached[-1][1])
        print(target, fits[str(target)], flush=True)
    for (before, start), (target, end) in itertools.pairwise(reached):
        between = {batch: end[batch] - start[batch] for batch in end.keys() & start.keys() if end[batch] > start[batch]}
        fits[f"{before} to {target}"] = fit_of(between)
        print(before, target, fits[f"{before} to {target}"], flush=True)
    facts = {"task": arguments.task, "commit": commit, "environment": environment(), "max_epochs": arguments.max_epochs}
    (HERE / f"{arguments.task.replace('/', '-')}-targets.json").write_text(json.dumps({**facts, "targets": fits}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--targets", type=float, nargs="+", required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--every", type=float, default=0.025, help="epochs between evaluations")
    parser.add_argument("--max-epochs", type=float, default=3.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study(arguments)
