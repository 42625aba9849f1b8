"""Does AutoWU find in one run what a search of the rate finds in six? At 16 times the tuned batch, by SGD and by the paper's AdamP.

    python studies/autowu/run.py fashion_mnist/mlp --seeds 5 &
    python studies/autowu/run.py fashion_mnist/lstm fashion_mnist/cnn
    python studies/tables.py autowu

Fixed beforehand, for each task and optimizer (the named recipe's SGD; AdamP as `rule="adamp"` sets it), the same samples seen:
- `rule`, no search: one run by the classical rule (linear with its warm-up of five epochs; the square root for AdamP).
- `rate searched`: LEGW's warm-up (0.1 epochs times 16), the recipe's decay, and the best of six peak rates, from 1/8 to 4 times the square
  root rule's, on validation data.
- `AutoWU`, no search: as it comes, from 1e-5 of a peak of 1 (the paper's, for AdamP) or of the linear rule's rate (SGD), cosine.
- `AutoWU, weights return`, no search: the same with our option to go back to the weights of the minimum too.
- `AutoWU, searched`: the best of six on validation data too: warm-up of at most a half, a quarter or an eighth of the run; cosine, or
  constant and then cosine.
Searches are one run a setting, with a seed that the test runs don't have. Test set once a run, final weights, three seeds (mlp: five).
Nothing else is tuned. What the tests of AutoWU cost is `test_s` over `train_s`. Appends a line a finished run to `<task>.jsonl` beside this
script (searches: `<task>-search.jsonl`), so it can be stopped and continued. `--epochs` and `--out` are for trying the script.
"""

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import torch

from bigbatch import Recipe, fit, plan
from bigbatch.core.checks import Diverged
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.tasks.task import load_task
from bigbatch.train.state.record import environment, read_record

HERE = Path(__file__).parent
TASKS = ("fashion_mnist/mlp", "fashion_mnist/lstm", "fashion_mnist/cnn")
MULTIPLE, SEARCH_SEED = 16, 100
RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
SHARES, DECAYS = (1 / 2, 1 / 4, 1 / 8), ("cosine", "constant_cosine")


def bases(task, optimizer, epochs):
    """The classical rule's recipe, the one whose rate is searched, and AutoWU's."""
    recipe = Recipe.named(task)
    recipe = recipe.replace({"budget": {"epochs": epochs}}) if epochs else recipe
    batch = MULTIPLE * recipe.batch.global_batch
    rules = ("linear", "legw") if optimizer == "sgd" else ("adamp", "adamp")
    rule, searched = (plan(recipe, global_batch=batch, rule=name).recipe for name in rules)
    peak = MULTIPLE * recipe.optimizer.lr if optimizer == "sgd" else 1.0
    grown = {"schedule": {"warmup": {"kind": "autowu"}, "decay": {"kind": "constant"}}, "optimizer.lr": peak}
    return rule, searched, searched.replace(grown)


def settings(searched, autowu):
    """What each search tries, by the arm."""
    rates = [searched.replace({"optimizer.lr": times * searched.optimizer.lr}) for times in RATES]
    grown = [autowu.replace({"schedule.warmup.share": share, "schedule.warmup.decay": decay}) for share in SHARES for decay in DECAYS]
    return {"rate searched": rates, "AutoWU, searched": grown}


def run(task, recipe, *, measure_test):
    """One run, and how its warm-up ended if it ended by itself."""
    options = {"quiet": True, "tensorboard": False, "evaluate_every": recipe.total_epochs, "measure_test": measure_test}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = fit(task, recipe, out=folder, **options)
        except Diverged as error:
            return {"test_score": None, "validation_score": None, "updates": error.update, "train_s": None, "diverged": True}
        switch = next((line for line in read_record(Path(folder) / "record.jsonl") if line["kind"] == "switch"), None)
    test_score = None if math.isnan(result.test_score) else result.test_score
    scores = {"test_score": test_score, "validation_score": result.validation_score}
    return {**scores, "updates": result.updates, "train_s": round(result.train_s, 2), "diverged": False, "switch": switch}


class Lines:
    """What was run already, by its key, seed and recipe."""

    def __init__(self, path, facts):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.facts = path, facts
        self.done = {identity(line["key"], line["seed"], line["recipe"]): line for line in readable_lines(path)}

    def line(self, task, key, recipe, seed, *, measure_test):
        """Of a run, which is made if it was not yet."""
        recipe = recipe.replace({"seed": seed})
        found = identity(key, seed, recipe.to_dict())
        if found not in self.done:
            outcome = run(task, recipe, measure_test=measure_test)
            self.done[found] = {"key": key, "seed": seed, **outcome, **self.facts, "recipe": recipe.to_dict()}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[found]) + "\n")
            print(key, seed, *(outcome[name] for name in ("validation_score", "test_score", "train_s")), flush=True)
        return self.done[found]


def identity(key, seed, recipe):
    return json.dumps([key, seed, Recipe.from_saved(recipe).to_dict()], sort_keys=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"commit": commit, "environment": environment()}
    for name in arguments.tasks:
        task, file = load_task(name), name.replace("/", "-")
        tests, searches = Lines(arguments.out / f"{file}.jsonl", facts), Lines(arguments.out / f"{file}-search.jsonl", facts)
        for optimizer in ("sgd", "adamp"):
            rule, searched, autowu = bases(name, optimizer, arguments.epochs)
            back = autowu.replace({"schedule.warmup.return_to_minimum": True})
            arms = {"rule": rule, "AutoWU": autowu, "AutoWU, weights return": back}
            for arm, tried in settings(searched, autowu).items():
                key = {"optimizer": optimizer, "arm": arm}
                found = [searches.line(task, key, recipe, SEARCH_SEED, measure_test=False) for recipe in tried]
                arms[arm] = tried[max(range(len(tried)), key=lambda i: found[i]["validation_score"] or 0.0)]
            for seed in range(arguments.seeds):  # arms alternate
                for arm, recipe in arms.items():
                    tests.line(task, {"optimizer": optimizer, "arm": arm}, recipe, seed, measure_test=True)


if __name__ == "__main__":
    main()
