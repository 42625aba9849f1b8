"""The asynchronous parameter server beside the ways of run.py, on data dealt out evenly (samples go to whoever is free).

    python studies/decentralised/asynchronous.py --seeds 3 [--task fashion_mnist/cnn]

8 workers, each of which computes an eighth of the batch as in run.py; each gradient is an update of its own, with an eighth of the rate, so
that as many samples move the weights as far; staleness is bounded by 16, damped or not. Everything else as in run.py. Appends to its files.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from run import HERE, MULTIPLES, RATES, TASKS, classical

from bigbatch.train.record import environment, read_record

WORKERS = 8
WAYS = {"async": "none", "async, damped": "inverse"}


def recipe_of(task, multiple, damping, seed):
    recipe = classical(task, multiple, RATES[task, multiple] / WORKERS)
    share = recipe.batch.global_batch // WORKERS
    comm = {"kind": "parameter_server", "mode": "asynchronous", "staleness_bound": 16, "damping": damping}
    return recipe.replace({"batch.global_batch": share, "seed": seed, "comm": comm})


def run(task, recipe):
    """By `bigbatch train`: a process for the server and one for each worker."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "recipe.toml", Path(folder) / "run"
        file.write_text(recipe.to_toml())
        command = [sys.executable, "-m", "bigbatch", "train", task, "--recipe", str(file), "--workers", str(WORKERS), "--out", str(out)]
        done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
        if done.returncode == 3:
            return {"test_score": None, "validation_score": None, "updates": None, "train_s": None, "diverged": True}
        assert done.returncode == 0, done.stderr
        result, end = json.loads((out / "result.json").read_text()), read_record(out / "record.jsonl")[-1]
    kept = {name: result[name] for name in ("test_score", "validation_score", "updates", "train_s")}
    return {**kept, "diverged": False, "staleness": end["staleness"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", choices=TASKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # for the record: as in the workers
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"commit": commit, "workers": WORKERS, "environment": environment()}
    for task in [arguments.task] if arguments.task else TASKS:
        path = HERE / f"{task.replace('/', '-')}.jsonl"
        for seed in range(arguments.seeds):
            for multiple in MULTIPLES:
                for way, damping in WAYS.items():
                    key = {"task": task, "data": "iid", "multiple": multiple, "way": way}
                    if any(line["key"] == key and line["seed"] == seed for line in read_record(path)):
                        continue
                    recipe = recipe_of(task, multiple, damping, seed)
                    line = {"key": key, "seed": seed, **run(task, recipe), **facts, "recipe": recipe.to_dict()}
                    with path.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(key, seed, line["test_score"], line["train_s"], line.get("staleness"), flush=True)
