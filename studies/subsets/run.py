"""Does it help to step on those subsets of the batch whose gradients differ most? Rules of subset_gradients.py at equal passes.

    cd studies/subsets
    python run.py fashion_mnist/mlp --search                                            # rates, on validation data
    python run.py fashion_mnist/mlp --multiples 16 64 --optimizers sgd muon --seeds 5

An update's samples are cut into 8 parts, of which a rule takes 4. Arms are the rules, and `smaller`: half of the batch, so twice as many
updates with the same samples. The recipe at each multiple is what `plan` writes by the rule `sqrt` (SGD) or `muon`, its rate times the best
of FACTORS for that arm, by validation data and a seed of its own (100): arms make gradients of different lengths. The test set is used once
a run. Appends a line a finished run to <task>.jsonl beside this script (a search's: <task>-search.jsonl).
"""

import argparse
import json
import math
import statistics
import subprocess
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from subset_gradients import RULES, SEEN
from torch.utils.data import TensorDataset

from bigbatch import Diverged, Recipe, fit, plan
from bigbatch.core.storage.json_lines import append_line, stored_lines
from bigbatch.study.constant_rate import rates_of
from bigbatch.tasks import load_task, metric_of
from bigbatch.train.measure.evaluate import evaluate
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
PARTS, KEPT = 8, 4
ARMS = (*RULES, "smaller")
TRAIN_SAMPLES = 10_000
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0)
SEARCH_SEED = 100
KEY = ("multiple", "optimizer", "arm", "factor", "seed")


def recipe_of(task, multiple, optimizer, arm, factor):
    """What an arm trains with."""
    named = Recipe.named(task)
    batch = multiple * named.batch.global_batch // (2 if arm == "smaller" else 1)
    recipe = plan(named, global_batch=batch, rule="sqrt" if optimizer == "sgd" else "muon").recipe
    recipe = recipe.replace({name: factor * recipe.get(name) for name in rates_of(recipe)})
    if arm == "smaller":
        return recipe
    own = {"optimizer.name": f"subset_{optimizer}", "optimizer.rule": arm, "optimizer.kept": KEPT}
    return recipe.replace({**own, "batch.micro_batch": batch // PARTS})


def run(task, recipe, *, measure_test):
    """Train and measure once."""
    SEEN.clear()
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        try:
            result = fit(
                task, recipe, out=folder, quiet=True, tensorboard=False, evaluate_every=recipe.total_epochs, measure_test=measure_test
            )
        except Diverged as error:
            return {"diverged": True, "updates": error.update}
        model = task.model()
        model.load_state_dict(torch.load(Path(folder) / "last.pt", weights_only=True)["model"])
    part = TensorDataset(*(tensor[:TRAIN_SAMPLES] for tensor in task.splits().train.tensors))
    train = evaluate(model, task, part, recipe=recipe)
    ratios = [each["noise"] / each["signal"] for each in SEEN]
    return {
        "diverged": False,
        "test_score": result.test_score,
        "validation_score": result.validation_score,
        "train_loss": train.loss,
        "updates": result.updates,
        "train_s": round(result.train_s, 2),
        "wall_s": round(time.monotonic() - began, 2),
        "noise_to_signal": statistics.median(ratios) if ratios else None,  # tr(cov)/|g|^2 of the whole batch's gradient
        "cosine": statistics.fmean(each["cosine"] for each in SEEN) if SEEN else None,
        "least_cosine": statistics.fmean(each["least"] for each in SEEN) if SEEN else None,
    }


def key_of(line):
    """What a line is of."""
    return json.dumps([line[name] for name in KEY])


class Study:
    """Lines of a task, those that are there and those that are made."""

    def __init__(self, task):
        self.name, self.metric = task, metric_of(load_task(task).metric)
        self.paths = {search: HERE / f"{task.replace('/', '-')}{'-search' if search else ''}.jsonl" for search in (False, True)}
        self.lines = {search: {key_of(line): line for line in stored_lines(path, key_of)} for search, path in self.paths.items()}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        self.facts = {"commit": commit, "environment": environment()}

    def line(self, multiple, optimizer, arm, factor, seed, *, search=False):
        """One run's line."""
        line = {"task": self.name, "multiple": multiple, "optimizer": optimizer, "arm": arm, "factor": factor, "seed": seed}
        key = key_of(line)
        if key not in self.lines[search]:
            recipe = recipe_of(self.name, multiple, optimizer, arm, factor).replace({"seed": seed})
            self.lines[search][key] = line | run(load_task(self.name), recipe, measure_test=not search) | self.facts
            append_line(self.paths[search], self.lines[search][key])
            found = self.lines[search][key]
            score = "diverged" if found["diverged"] else self.metric.text(found["validation_score" if search else "test_score"])
            print(*key_of(line)[1:-1].split(", "), score, found.get("train_loss"), flush=True)
        return self.lines[search][key]

    def best_factor(self, *cell):
        """By validation score; of equals the smallest."""
        found = [self.lines[True].get(key_of(dict(zip(KEY, (*cell, factor, SEARCH_SEED), strict=True)))) for factor in FACTORS]
        ranks = [self.metric.rank(None if line is None or line["diverged"] else line["validation_score"]) for line in found]
        if min(ranks) == math.inf:
            raise SystemExit(f"{cell}: no rate is known; run --search first")
        return FACTORS[ranks.index(min(ranks))]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--multiples", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "muon"], choices=["sgd", "muon"])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--search", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(arguments.task)
    cells = [(m, o, a) for m in arguments.multiples for o in arguments.optimizers for a in arguments.arms]
    if arguments.search:
        for cell, factor in product(cells, FACTORS):
            study.line(*cell, factor, SEARCH_SEED, search=True)
        return
    for seed, cell in product(range(arguments.seeds), cells):
        study.line(*cell, study.best_factor(*cell), seed)


if __name__ == "__main__":
    main()
