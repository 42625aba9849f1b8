"""Hoffer's columns: a large batch as it is, with a raised rate, with ghost batches, and with as many updates as the small one made.

    python studies/train_longer/run.py --half 0 & python studies/train_longer/run.py --half 1
    python studies/tables.py train_longer

fashion_mnist/resnet8 at 16 times the tuned batch, with a step schedule as in the paper (the recipe's rate and warm-up, a tenth of the rate
from half of the run on, a hundredth from three quarters on) and 6 epochs, half of the recipe's, so that the last column is affordable. Each
column adds to the one before, all else equal; none was tuned:

    SB      batch 128, batch norm over it
    LB      batch 2,048, batch norm over all of it
    +LR     rate times sqrt(16) = 4, the global norm of the mean gradient clipped at 5
    +GBN    batch norm over ghost batches of 128
    +RA     regime adaptation: 96 epochs, as many updates as SB
    noise   beside +LR, in its place: LB with multiplicative noise, as noisy as batches of 128

Three seeds, final weights, test set once a run; how far the weights are from their start is recorded on the way. Appends a line a finished
run to a file beside this script; stopped at any moment, it goes on where it was. --half: the runs are dealt out to two processes of one
thread each, of about equal work.
"""

import argparse
import subprocess
from pathlib import Path

import torch

from bigbatch import Recipe, plan
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks.task import load_task
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
TASK, MULTIPLE, EPOCHS, CLIP_NORM = "fashion_mnist/resnet8", 16, 6, 5.0
SHARES, FACTOR = (0.5, 0.75), 0.1  # of the run; of the rate


def columns(epochs):
    milestones = [share * epochs for share in SHARES]
    decay = {"kind": "step", "milestones": milestones, "factor": FACTOR}
    small = Recipe.named(TASK).replace({"schedule.decay": decay, "budget.epochs": epochs})
    batch = MULTIPLE * small.batch.global_batch
    large, raised, longer = (plan(small, global_batch=batch, rule=rule).recipe for rule in ("none", "sqrt", "regime"))
    whole, clipped = {"batch.ghost_batch": "global"}, {"optimizer.clip_norm": CLIP_NORM}
    return {
        "SB": small,
        "LB": large.replace(whole),
        "+LR": raised.replace(whole | clipped),
        "+GBN": raised.replace(clipped),
        "+RA": longer.replace(clipped),
        "noise": large.replace(whole | {"batch.noise_batch": small.batch.global_batch}),
    }


def halves(runs):
    """Two lists of about equal work: the longest run goes first, each to the half that has less."""
    parts, work = ([], []), [0, 0]
    for cell, seed in sorted(runs, key=lambda run: -run[0].recipe.total_samples):
        less = work.index(min(work))
        parts[less].append((cell, seed))
        work[less] += cell.recipe.total_samples
    return parts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--columns", nargs="+", choices=list(columns(EPOCHS)))
    parser.add_argument("--out", type=Path, default=HERE / "runs.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    task, facts = load_task(TASK), {"commit": commit, "environment": environment()}
    cells = [Cell({"column": name}, recipe) for name, recipe in columns(arguments.epochs).items()]
    runs = [(cell, seed) for seed in range(arguments.seeds) for cell in cells]
    if arguments.half is not None:
        runs = halves(runs)[arguments.half]
    for cell, seed in runs:
        if arguments.columns is None or cell.key["column"] in arguments.columns:
            (line,) = run_grid(task, [cell], seeds=[seed], path=arguments.out, facts=facts, measure_distance=True)
            print(line["key"], seed, line["test_score"], line["updates"], line["train_s"], flush=True)
