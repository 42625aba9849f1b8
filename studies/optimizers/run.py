"""Which method holds how far? Methods x multiples of the tuned batch, the same samples seen, untuned.

    python studies/optimizers/run.py fashion_mnist/mlp --methods muon lamb --multiples 16 64 --seeds 5
    python studies/optimizers/table.py

Fixed beforehand: the named recipe as reference (its runs are those of studies/reference_recipes), each method as `bigbatch plan` writes
it with nothing tuned to the task or the multiple, final weights, test set once a run. "full" is the whole training set in one update.
Appends a line a finished run to <task>.jsonl beside this script, so it can be stopped and continued.
"""

import argparse
import subprocess
from pathlib import Path

import torch

from bigbatch import Recipe, plan
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks.task import load_task
from bigbatch.train.record import environment

HERE = Path(__file__).parent
METHODS = ("none", "linear", "sqrt", "legw", "lars", "lamb", "adam", "adamp", "muon")


def batch_of(recipe, multiple):
    return recipe.num_train_samples if multiple == "full" else recipe.batch.global_batch * int(multiple)


def cells(task, methods, multiples):
    reference = Recipe.named(task)
    for multiple in multiples:
        batch = batch_of(reference, multiple)
        if batch > reference.num_train_samples:
            continue
        for method in methods:
            yield Cell({"task": task, "method": method, "multiple": multiple}, plan(reference, global_batch=batch, rule=method).recipe)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--multiples", nargs="+", default=["4", "16", "64", "256", "full"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="one: two studies side by side on two cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    for cell in cells(arguments.task, arguments.methods, arguments.multiples):
        path = HERE / f"{arguments.task.replace('/', '-')}.jsonl"
        facts = {"commit": commit, "environment": environment()}
        lines = run_grid(load_task(arguments.task), [cell], seeds=range(arguments.seeds), path=path, facts=facts)
        print(*cell.key.values(), [line["test_score"] and round(100 * line["test_score"], 2) for line in lines], flush=True)
