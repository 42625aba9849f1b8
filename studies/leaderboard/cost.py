"""Seconds an update at 64 times the batch: Muon's, and SOAP before Muon's, alternating within each round; medians and their ratio.

    python studies/leaderboard/cost.py [--rounds 7] [--threads 1]

An update is the gradient of the batch and the optimizer's step. Writes cost.json beside this script.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from bigbatch import plan
from bigbatch.recipe import Recipe
from bigbatch.tasks import load_task
from bigbatch.train.setup.build import build_model, build_optimizer
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
TASKS = ("fashion_mnist/mlp", "fashion_mnist/cnn", "fashion_mnist/lstm", "fashion_mnist/resnet8", "text/gpt")
MICRO = {"text/gpt": 16}
"""Samples in a pass; 512 else."""


def seconds_of(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(name, rounds):
    task, named, arms = load_task(name), Recipe.named(name), {}
    batch = 64 * named.batch.global_batch
    size = MICRO.get(name, 512)
    pairs = [task.splits().train[i] for i in range(size)]
    inputs, targets = (torch.stack([torch.as_tensor(pair[i]) for pair in pairs]) for i in (0, 1))
    for rule in ("muon", "soap_muon"):
        recipe = plan(named, global_batch=batch, rule=rule).recipe
        torch.manual_seed(0)
        model = build_model(task, recipe)
        arms[rule] = model, build_optimizer(model, recipe), recipe

    def passed(model, recipe):
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            outputs = model(inputs)
        (task.losses(outputs, targets).sum() / batch).backward()

    found = {"gradient": [], "muon": [], "soap_muon": []}
    for _ in range(rounds):
        for rule, (model, optimizer, recipe) in arms.items():
            optimizer.zero_grad()
            found["gradient"].append(seconds_of(lambda: passed(model, recipe)) * batch / size)  # noqa: B023 called at once
            found[rule].append(seconds_of(optimizer.step))
    medians = {what: statistics.median(times) for what, times in found.items()}
    whole = {rule: medians["gradient"] + medians[rule] for rule in arms}
    return {"task": name, "global_batch": batch, "median_s": medians, "ratio": whole["soap_muon"] / whole["muon"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    for task_name in TASKS:
        rows.append(measure(task_name, arguments.rounds))
        print(json.dumps(rows[-1]), file=sys.stderr)
    (HERE / "cost.json").write_text(json.dumps({"commit": commit, "environment": environment(), "rows": rows}, indent=1) + "\n")
