"""Which measurement predicts the critical batch? Noise scales, branches and the full study, at the same points of the same runs.

    python studies/critical_batch/side_by_side.py fashion_mnist/mlp fashion_mnist/cnn text/gpt
    python studies/tables.py critical_batch

At a tenth, a quarter and half of the named recipe's run: branches as `bigbatch critical --branch` makes them by default; and, at the
weights and optimizer state of the same checkpoint, held still, noise scales over UPDATES updates of GROUPS micro-batches of the recipe's
batch: the plain one, the preconditioned one, and those in the norms l1, nuclear and euclidean. What they are compared with: the critical
batches for three targets of the validation loss, from targets.py. Writes `<task>-side-by-side.json` beside this script; runs are in --runs.
"""

import argparse
import json
import subprocess
import warnings
from pathlib import Path

import torch

from bigbatch import Recipe, fit
from bigbatch.comm.ranks import SINGLE_PROCESS
from bigbatch.core.checks import UserError
from bigbatch.noise import DualNormMonitor, NoiseScaleMonitor
from bigbatch.noise.preconditioned import Preconditioned
from bigbatch.study.branches import branches
from bigbatch.study.branches.base_runs import TaskRun
from bigbatch.tasks import load_task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.precision import DTYPES
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.run import Options
from bigbatch.train.state.checkpoint import numbered_checkpoints
from bigbatch.train.state.record import environment
from bigbatch.train.trainer import set_up
from bigbatch.train.update.gradient_accumulation import Pass, accumulate_gradients

HERE = Path(__file__).parent
UPDATES, GROUPS, ORDER = 60, 8, 12345


def noise_scales(task, recipe, path):
    """By what they are of, at a checkpoint: value and bounds, in samples."""
    options = Options(measure_test=False, tensorboard=False, quiet=True)
    run = set_up(task, recipe, options, SINGLE_PROCESS, checkpoint=path)
    model, batch = run.model, recipe.batch.global_batch
    monitors = {"plain": NoiseScaleMonitor(model)}
    if recipe.optimizer.name != "sgd":
        monitors["preconditioned"] = NoiseScaleMonitor(model, precondition=Preconditioned(model, run.optimizer))
    monitors |= {norm: DualNormMonitor(model, norm=norm, every_updates=1, num_groups=GROUPS) for norm in ("l1", "nuclear", "euclidean")}
    for update in range(UPDATES):
        index = sample_indices(ORDER, recipe.num_train_samples, update * GROUPS * batch, GROUPS * batch)
        pieces = load_micro_batches(run.data.train, index.split(batch), device=torch.device("cpu"), dtype=DTYPES[recipe.precision])
        passes = [Pass(inputs, targets, num_samples=batch) for inputs, targets in pieces]

        def after(num_samples, divisor):
            for monitor in monitors.values():
                monitor.micro_batch(num_samples, divisor=divisor)

        how = {"precision": recipe.precision, "device": torch.device("cpu"), "after_backward": after}
        accumulate_gradients(model, task, passes, divisor=GROUPS * batch, **how)
        for monitor in monitors.values():
            monitor.update()
        model.zero_grad()
    found = {}
    for name, monitor in monitors.items():
        try:
            estimate = monitor.estimate()
            found[name] = [estimate.noise_scale, estimate.lower, estimate.upper]
        except UserError as error:
            found[name] = str(error)
    return found


def study(name, arguments):
    recipe, task = Recipe.named(name), load_task(Recipe.named(name).task)
    out = arguments.runs / name.replace("/", "-")
    if not (out / "result.json").exists():
        fit(task, recipe, out=out, keep_checkpoints=True, evaluate_every=recipe.total_epochs / 20, quiet=True, tensorboard=False)
    result = json.loads((out / "result.json").read_text())
    found = branches(TaskRun(out, task=task), out=out / "branches", say=lambda text: print(text, flush=True)).to_dict()
    spent = [json.loads(line) for line in (out / "branches" / "branches.jsonl").read_text().splitlines()]
    seconds = sum(line["train_s"] or 0 for line in spent) / len(found["points"])
    points = []
    for point in found["points"]:
        scales = noise_scales(task, recipe, numbered_checkpoints(out)[point["updates"]])
        points.append({**point, "noise_scales": scales})
        print(name, point["updates"], point["critical_batch"], scales, flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"task": name, "commit": commit, "environment": environment(), "recipe": recipe.to_dict()}
    facts |= {"cost": found["cost"], "measured_cost": seconds / result["train_s"], "global_batch": recipe.batch.global_batch}
    (HERE / f"{name.replace('/', '-')}-side-by-side.json").write_text(json.dumps({**facts, "points": points}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/side_by_side"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    for task_name in arguments.tasks:
        study(task_name, arguments)
