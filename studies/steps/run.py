"""How updates to a target fall with the batch if every setting is tuned anew: SGD, momentum, and Muon, on four tasks.

    cd studies/steps
    python run.py digits/mlp [--arms momentum sgd muon] [--parallel 2]
    python run.py digits/mlp --cheap                      # what `bigbatch critical` says of the same, for the rate alone on one seed
    python table.py

An arm is the task's recipe with another optimizer; each is searched by `bigbatch.study.steps`, on validation data, at batches from far
below to far beyond the critical one. `simple_cnn` is the Simple CNN of Shallue et al. with their goal, an error below 0.1. Trials are in
trials/<task>-<arm>/trials.db, from which a stopped study goes on; what came of them is kept as results/<task>-<arm>.json.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

from bigbatch import Recipe, plan
from bigbatch.runner.parallel import Parallel
from bigbatch.study.critical import critical
from bigbatch.study.steps import steps
from bigbatch.study.steps.steps import RESULT
from bigbatch.study.steps.study import stored_rows

HERE = Path(__file__).parent
TASKS = {
    "digits/mlp": {"batches": [8, 16, 32, 64, 128, 256, 512, 1024, 1297], "target": 0.96, "trials": 32},
    "fashion_mnist/mlp": {"batches": [16, 64, 256, 1024, 4096, 16384], "target": 0.88, "trials": 24, "max_epochs": 4},
    "fashion_mnist/cnn": {"batches": [32, 128, 512, 2048, 8192], "target": 0.90, "trials": 16, "max_epochs": 4},
    "simple_cnn": {"batches": [32, 128, 512, 2048, 8192, 32768], "target": 0.90, "trials": 12, "max_epochs": 4},
}
ARMS = {
    "momentum": {},
    "sgd": {"optimizer.momentum": 0.0, "optimizer.nesterov": False},
    "muon": None,  # its own plan
}


def recipe_of(task, arm):
    """The reference of an arm, at the task's own batch."""
    if task == "simple_cnn":
        named = Recipe.named("fashion_mnist/cnn").replace({"task": "simple_cnn:SimpleCNN", "optimizer.weight_decay": 0.0})
    else:
        named = Recipe.named(task)
    if arm == "muon":  # at the tuned batch itself every rule keeps the recipe
        return plan(named, global_batch=4 * named.batch.global_batch, rule="muon").recipe
    return named.replace(ARMS[arm])


def cheap(name, recipe, how):
    """The study of `bigbatch critical`, with its own choices."""
    began, said = time.monotonic(), []
    given = {"batches": how["batches"], "target": how["target"], "max_epochs": how.get("max_epochs")}
    found = critical(recipe.task, recipe, **given, out=HERE / "trials" / f"{name}-cheap", quiet=True, say=said.append).to_dict()
    stored = {
        "seconds": round(time.monotonic() - began),
        "runs": len(said),
        "critical_batch": found["fit"] and found["fit"]["critical_batch"],
    }
    stored |= {
        "best": [
            [p["global_batch"], p["lr"], min((r["updates"] for r in p["runs"] if r["reached"]), default=None)] for p in found["points"]
        ]
    }
    folder = HERE / "cheap"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**stored, "sentence": found["sentence"]}) + "\n")
    print(name, stored["seconds"], "s:", found["sentence"], flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--cheap", action="store_true")
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    for task in arguments.tasks:
        for arm in arguments.arms:
            name = f"{task.replace('/', '-')}-{arm}"
            how, began = dict(TASKS[task]), time.monotonic()
            if arguments.cheap:
                cheap(name, recipe_of(task, arm), how)
                continue
            how["trials"] = arguments.trials or how["trials"]
            recipe = recipe_of(task, arm)
            pool = Parallel(arguments.parallel) if arguments.parallel > 1 else None
            study = steps(recipe.task, recipe, **how, out=HERE / "trials" / name, quiet=True, pool=pool)
            stored = json.loads((HERE / "trials" / name / RESULT).read_text())
            results = HERE / "results"
            results.mkdir(exist_ok=True)
            seconds = round(time.monotonic() - began)
            before = json.loads((results / f"{name}.json").read_text())["seconds"] if (results / f"{name}.json").exists() else 0
            stored |= {"arm": arm, "commit": commit, "seconds": max(seconds, before), "parallel": arguments.parallel}
            (results / f"{name}.json").write_text(json.dumps(stored) + "\n")
            print(task, arm, f"{seconds} s")
            for row in stored_rows(study.to_dict()):
                print("  ", *row, sep=" | ")
            for text in (*study.sentences(), *study.doubts()):
                print("   ", text, flush=True)


if __name__ == "__main__":
    main()
