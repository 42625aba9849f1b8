"""Increase the batch instead of decaying the rate (Smith et al. 2017): the same accuracy in fewer updates?

    python studies/increase_batch/run.py --seeds 5
    python studies/tables.py increase_batch

fashion_mnist/resnet8, its named recipe with a step schedule: the rate falls to a fifth after each quarter of the run (the paper: to a
fifth at 0.3, 0.6 and 0.8 of it). Two arms over the same schedule: the rate decays at a batch of 128; or the batch grows 5 times instead,
up to a tenth of the training set, and the rate decays from there on. Ghost batches of 128 in both; nothing was tuned. Final weights, test
set once a run. Appends a line a finished run to runs.jsonl beside this script.
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
TASK = "fashion_mnist/resnet8"
SHARES = (0.25, 0.5, 0.75)  # of the run


def decaying():
    recipe = Recipe.named(TASK)
    milestones = [share * recipe.total_epochs for share in SHARES]
    return recipe.replace({"schedule.decay": {"kind": "step", "milestones": milestones, "factor": 0.2}})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    task, facts = load_task(TASK), {"commit": commit, "environment": environment()}
    growing = decaying().replace({"batch.rule": {"kind": "increase_batch"}})
    for seed in range(arguments.seeds):  # the arms alternate
        cells = [Cell({"arm": "decay"}, decaying()), Cell({"arm": "increase"}, growing)]
        for line in run_grid(task, cells, seeds=[seed], path=HERE / "runs.jsonl", facts=facts):
            print(line["key"], seed, line["test_score"], line["updates"], line["train_s"], flush=True)
