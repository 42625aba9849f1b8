"""Batches that grow during a run, against fixed ones: fewer updates at no loss, samples equal?

    python studies/batch_schedules/run.py fashion_mnist/mlp --choose        # arms compared on validation data, seeds of their own
    python studies/batch_schedules/run.py fashion_mnist/mlp                 # judged: five seeds, test set once a run
    python studies/batch_schedules/run.py text/gpt --arms fixed seesaw-4
    python studies/tables.py batch_schedules

Muon, at the batch FIRST of each task, by `bigbatch plan` from the named recipe, or the named recipe that was tuned with Muon where it is of
that batch. Arms: fixed batches of 1, 2, 4 and 8 times FIRST, each as `plan` writes it; from the recipe at FIRST, batches that grow to 4 or
8 times it: `seesaw` (as the rate decays), `ramp` (in a straight line over the first half), `late` (after half), and `noise` (the rule
noise_scale in Muon's own norm, with an exchange rate of FIRST). Nothing is tuned to an arm. Appends a line a finished run to <task>.jsonl
(with --choose: <task>-choose.jsonl) beside this script, so it can be stopped and continued.
"""

import argparse
import subprocess
from pathlib import Path

import torch

from bigbatch import Recipe, plan
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks import load_task, metric_of
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
FIRST = {"fashion_mnist/mlp": 2048, "fashion_mnist/cnn": 1024, "text/gpt": 16}
OWN = {"text/gpt": "text/gpt-muon"}
ARMS = ("fixed", "fixed-2", "fixed-4", "fixed-8", "seesaw-4", "seesaw-8", "ramp-4", "late-4", "noise-8")
SEEDS_TO_CHOOSE = (100, 101)


def recipe_of(task, arm):
    """By its name: kind and how many times the first batch."""
    kind, _, times = arm.partition("-")
    first, own = FIRST[task], Recipe.named(OWN.get(task, task))
    largest = first * int(times or 1)
    if kind == "fixed":
        return plan(own, global_batch=largest, rule="muon").recipe
    recipe = plan(own, global_batch=first, rule="muon").recipe
    rule = {
        "seesaw": {"kind": "seesaw", "largest": largest},
        "ramp": {"kind": "ramp", "largest": largest, "over_samples": recipe.total_samples // 2},
        "late": {"kind": "late", "largest": largest, "after": 0.5},
        "noise": {"kind": "noise_scale", "largest": largest, "smallest": first, "exchange_rate": first},
    }[kind]
    return recipe.replace({"batch.rule": rule})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="one: two studies side by side on two cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    task, facts = load_task(arguments.task), {"commit": commit, "environment": environment()}
    metric = metric_of(task.metric)
    path = HERE / f"{arguments.task.replace('/', '-')}{'-choose' if arguments.choose else ''}.jsonl"
    for seed in SEEDS_TO_CHOOSE if arguments.choose else range(arguments.seeds):  # the arms alternate
        for arm in arguments.arms:
            cell = Cell({"task": arguments.task, "arm": arm}, recipe_of(arguments.task, arm))
            (line,) = run_grid(task, [cell], seeds=[seed], path=path, facts=facts, measure_test=not arguments.choose)
            score = line["validation_score" if arguments.choose else "test_score"]
            print(arm, seed, score and metric.number(metric.shown(score)), line["updates"], line["train_s"], flush=True)
