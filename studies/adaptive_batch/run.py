"""What do rules that follow the gradient's noise buy? Each on one task, beside fixed batches, at the same samples seen.

    python studies/adaptive_batch/run.py fashion_mnist/cnn --seeds 3
    python studies/tables.py adaptive_batch

Fixed beforehand: the named recipe (its rate and schedule are those of the small batch); every rule with its defaults, starting at the
recipe's batch and bounded by 16 times it, with its paper's treatment of the rate (in brackets where it is ours); final weights; test set
once a run. Appends a line a finished run to <task>.jsonl beside this script.
"""

import argparse
import subprocess
from pathlib import Path

import torch

from bigbatch import Recipe
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks.task import load_task
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
LARGEST = 16
RULES = ("noise_scale", "norm_test", "inner_product_test", "cabs", "simigrad", "divebatch", "goodput", "adabatch", "increase_batch")


def arms(recipe):
    """Name to recipe."""
    batch = recipe.batch.global_batch
    yield "fixed, small", recipe
    yield "fixed, 4 times", recipe.replace({"batch.global_batch": 4 * batch, "optimizer.lr": 2 * recipe.optimizer.lr})
    yield "fixed, 16 times", recipe.replace({"batch.global_batch": 16 * batch, "optimizer.lr": 4 * recipe.optimizer.lr})
    for kind in RULES:
        changes = {"batch.rule": {"kind": kind, "largest": LARGEST * batch}}
        if kind == "adabatch":
            changes |= {"batch.rule": {**changes["batch.rule"], "every_epochs": recipe.total_epochs / 5}}
        if kind == "cabs":  # the only one that may fall below its start
            changes |= {"batch.rule": {**changes["batch.rule"], "smallest": batch // 4}}
        yield kind, recipe.replace(changes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    task, facts = load_task(arguments.task), {"commit": commit, "environment": environment()}
    for name, recipe in arms(Recipe.named(arguments.task)):
        if arguments.arms is None or name in arguments.arms:
            cell = Cell({"task": arguments.task, "arm": name}, recipe)
            path = HERE / f"{arguments.task.replace('/', '-')}.jsonl"
            lines = run_grid(task, [cell], seeds=range(arguments.seeds), path=path, facts=facts)
            scores = [line["test_score"] and round(100 * line["test_score"], 2) for line in lines]
            print(name, scores, [line["updates"] for line in lines], [line.get("train_s") for line in lines], flush=True)
