"""AdaScale against linear scaling with warm-up, at equal epochs and at equal updates.

    python studies/adascale/run.py fashion_mnist/mlp --multiples 1 4 16 64 --seeds 5
    python studies/adascale/run.py fashion_mnist/cnn --multiples 1 16 64 --seeds 3
    python studies/tables.py adascale

Fixed beforehand: the named recipe as reference; nothing tuned to the multiple S; final weights; test set once a run. Three arms:
    adascale        the recipe's rate times the measured gain; schedule and end by scale-invariant iterations, as the paper has it
    equal epochs    rate times S, warm-up over the first 5.5 % of the run from the recipe's rate (the paper's arm), the recipe's epochs
    equal updates   the same with as many updates as AdaScale took on the mean over its seeds, rounded: AdaScale sees more samples than
                    the recipe, and a comparison at equal epochs credits it for that
At S = 1 all three are the reference. Appends a line a finished run to <task>.jsonl beside this script.
"""

import argparse
import statistics
import subprocess
from pathlib import Path

import torch

from bigbatch import Recipe
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks.task import load_task
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
WARMUP = 0.055  # of the run


def adascale(recipe, multiple):
    batch = recipe.batch.global_batch
    return recipe.replace({"batch.global_batch": batch * multiple, "batch.rule": {"kind": "adascale", "base_batch": batch}})


def linear_with_warmup(recipe, multiple, updates=None):
    changes = {"batch.global_batch": recipe.batch.global_batch * multiple, "optimizer.lr": recipe.optimizer.lr * multiple}
    if updates is not None:
        changes |= {"budget.epochs": None, "budget.updates": updates}
    scaled = recipe.replace(changes)
    warmup = {"kind": "gradual", "epochs": WARMUP * scaled.total_epochs, "start_factor": 1 / multiple}
    return scaled.replace({"schedule.warmup": warmup})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--multiples", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    task, facts = load_task(arguments.task), {"commit": commit, "environment": environment()}
    reference = Recipe.named(arguments.task)

    def run(arm, multiple, recipe):
        path = HERE / f"{arguments.task.replace('/', '-')}.jsonl"
        cell = Cell({"task": arguments.task, "arm": arm, "multiple": multiple}, recipe)
        lines = run_grid(task, [cell], seeds=range(arguments.seeds), path=path, facts=facts)
        scores = [line["test_score"] and round(100 * line["test_score"], 2) for line in lines]
        print(arm, multiple, scores, [line["updates"] for line in lines], flush=True)
        return lines

    for multiple in arguments.multiples:
        if multiple == 1:
            run("reference", 1, reference)
            continue
        lines = run("adascale", multiple, adascale(reference, multiple))
        run("equal epochs", multiple, linear_with_warmup(reference, multiple))
        finished = [line["updates"] for line in lines if not line["diverged"]]
        if finished:
            run("equal updates", multiple, linear_with_warmup(reference, multiple, round(statistics.fmean(finished))))
