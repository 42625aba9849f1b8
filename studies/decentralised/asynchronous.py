"""The asynchronous parameter server beside the ways of run.py, on data dealt out evenly (samples go to whoever is free).

    python studies/decentralised/asynchronous.py --seeds 3 [--task fashion_mnist/cnn]

8 workers, each of which computes an eighth of the batch as in run.py; each gradient is an update of its own, with an eighth of the rate, so
that as many samples move the weights as far; staleness is bounded by 16. As recipes are tuned; damped; and, as studies/staleness teaches,
damped and without momentum, at a rate of its own that --search chose on the validation set. Everything else as in run.py. Appends to its
files, and to search_asynchronous.jsonl.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from run import HERE, MULTIPLES, RATES, TASKS, classical

from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.train.state.record import environment, read_record

WORKERS = 8
CALM = "async, damped, no momentum"
WAYS = ("async", "async, damped", CALM)
TIMES = (1, 3, 10, 30)  # of all-reduce's rate, in the search
CALM_RATES = {key: 10 * lr for key, lr in RATES.items()}  # by the search, in all four cells: lr / (1 - momentum) of the others


def recipe_of(task, multiple, way, lr, seed):
    recipe = classical(task, multiple, lr / WORKERS)
    share = recipe.batch.global_batch // WORKERS
    damping = "none" if way == "async" else "inverse"
    comm = {"kind": "parameter_server", "mode": "asynchronous", "staleness_bound": 16, "damping": damping}
    momentum = 0.0 if way == CALM else recipe.optimizer.momentum
    return recipe.replace({"batch.global_batch": share, "optimizer.momentum": momentum, "seed": seed, "comm": comm})


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


def study(path, task, seeds, cells, *, measure_test):
    """Run what is not there yet; cells are pairs of a key and a recipe by seed."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"commit": commit, "workers": WORKERS, "environment": environment()}
    for seed in seeds:
        for key, recipe_by_seed in cells:
            there = path.exists() and any(line["key"] == key and line["seed"] == seed for line in readable_lines(path))
            if not there:
                recipe = recipe_by_seed(seed)
                line = {"key": key, "seed": seed, **run(task, recipe), **facts, "recipe": recipe.to_dict()}
                if not measure_test:
                    line["test_score"] = None  # chosen on validation data
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(key, seed, line["validation_score"], line["test_score"], line["train_s"], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--search", action="store_true", help="the rates of the way without momentum, on seed 100")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # for the record: as in the workers
    for task in [arguments.task] if arguments.task else TASKS:
        if arguments.search:
            pairs = [(m, times * RATES[task, m]) for m in MULTIPLES for times in TIMES]
            cells = [({"task": task, "multiple": m, "lr": lr}, partial(recipe_of, task, m, CALM, lr)) for m, lr in pairs]
            study(HERE / "search_asynchronous.jsonl", task, [100], cells, measure_test=False)
        else:
            rates = {(m, way): (CALM_RATES if way == CALM else RATES)[task, m] for m in MULTIPLES for way in WAYS}
            keys = [{"task": task, "data": "iid", "multiple": m, "way": way} for m, way in rates]
            cells = [(key, partial(recipe_of, task, m, way, lr)) for key, ((m, way), lr) in zip(keys, rates.items(), strict=True)]
            study(HERE / f"{task.replace('/', '-')}.jsonl", task, range(arguments.seeds), cells, measure_test=True)
