"""The fewest updates to the small batch's score at 64 times the batch: a leaderboard of methods, each entered as a file.

    cd studies/leaderboard
    python run.py candidates/chrono.py --search                           # its settings, on validation data
    python run.py candidates/soap_muon.py --tasks fashion_mnist/resnet8   # at equal epochs, judged
    python run.py candidates/soap_muon.py --tasks fashion_mnist/cnn --updates 46 --seeds 8
    python table.py

A method is a file with

    recipe(planned)          the recipe of this method, from the one that the `muon` rule, or its own RULE, writes for so many updates
    task(plain, recipe)      optional: the task as the method needs it
    CHOICES                  settings that may be searched: fields of the recipe ("optimizer.lr *": times the plan's), or keywords of
                             `recipe`; the first is the file's own

and may register an optimizer (`bigbatch.core.methods`). Fixed for all: model, data, the batch of 64 times the tuned one, the order of the
samples, one pass of the batch's samples an update (what else a method computes is told in seconds an update).

--search: every one of CHOICES on both DEVELOPMENT tasks, one seed of its own (100), at equal epochs; the best mean rank of the two wins,
and gets a second seed (101). At most MOST_CHOICES. Judged are the winners, on all tasks, with the test set, once a run.
Appends a line a finished run to records/<method>-<task>.jsonl (a search's: ...-search.jsonl), so it can be stopped and continued.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch

from bigbatch import Recipe, plan
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks import load_task, metric_of
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "candidates")]  # candidates import what they share, and each other
MULTIPLE = 64
DEVELOPMENT = ("fashion_mnist/cnn", "fashion_mnist/lstm")
JUDGED = ("fashion_mnist/resnet8", "fashion_mnist/mlp", "fashion_mnist/vit", "text/lstm")
MOST_CHOICES = 20
SEARCH_SEEDS = (100, 101)


def load(path):
    """A method's file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planned(name, updates=None, rule="muon"):
    """What a rule writes for 64 times the batch, for as many epochs as the reference, or for so many updates."""
    named = Recipe.named(name)
    batch = MULTIPLE * named.batch.global_batch
    if updates is not None:
        named = named.replace({"budget.epochs": updates * batch / named.num_train_samples})
    return plan(named, global_batch=batch, rule=rule).recipe


def recipe_of(method, name, choice, updates=None):
    """The method's recipe with a choice of its settings."""
    keywords = {key: value for key, value in choice.items() if "." not in key}
    start = planned(name, updates, getattr(method, "RULE", "muon"))
    recipe = start if method is None else method.recipe(start, **keywords)
    for key, value in choice.items():
        field, _, times = key.partition(" ")
        if "." in field:
            recipe = recipe.replace({field: value * recipe.get(field) if times else value})
    return recipe


class Board:
    """Runs of methods on tasks."""

    def __init__(self, threads):
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)  # as in studies/optimizers
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        self.facts = {"commit": commit, "environment": environment()}

    def run(self, method, name, choice, seeds, *, updates=None, search=False):
        """The lines of a cell; a search's are of validation data alone."""
        recipe = recipe_of(method, name, choice, updates)
        key = {
            "task": name,
            "method": method.__name__ if method else "muon",
            "choice": choice,
            "updates": planned(name, updates).num_updates,
        }
        path = (
            HERE / "records" / f"{key['method']}-{name.replace('/', '-')}{'-search' if search else ''}.jsonl"
        )  # readable where it is known
        task, metric = load_task(recipe.task), metric_of(load_task(recipe.task).metric)
        if hasattr(method, "task"):
            task = method.task(task, recipe)
        lines = run_grid(task, [Cell(key, recipe)], seeds=seeds, path=path, facts=self.facts, measure_test=not search)
        scores = [line["validation_score" if search else "test_score"] for line in lines]
        shown = ["diverged" if score is None else metric.number(metric.shown(score)) for score in scores]
        seconds = statistics.median(line["train_s"] / max(line["updates"], 1) for line in lines)
        print(name, key["method"], choice or "", f"{key['updates']} updates:", *shown, f"({seconds:.2f} s an update)", flush=True)
        return [float("-inf") if score is None else metric.comparable(score) for score in scores]

    def search(self, method, tasks=DEVELOPMENT):
        """The choice with the best mean rank over the development tasks, one seed each."""
        choices = getattr(method, "CHOICES", ({},))
        assert len(choices) <= MOST_CHOICES, f"at most {MOST_CHOICES} choices, so that all methods have had the same"
        ranks = [0.0] * len(choices)
        for name in tasks:
            scores = [self.run(method, name, choice, SEARCH_SEEDS[:1], search=True)[0] for choice in choices]
            for i, score in enumerate(scores):
                ranks[i] += sum(other > score for other in scores)
        best = choices[ranks.index(min(ranks))]
        for name in tasks:
            self.run(method, name, best, SEARCH_SEEDS, search=True)
        return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", type=Path, help="files; none: the muon rule itself")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--try", dest="tried", action="store_true", help="judge on validation data, by seeds from 100 on")
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--choices", nargs="+", type=int, default=[0], help="which of CHOICES are judged")
    parser.add_argument("--updates", nargs="+", type=int, default=[None], help="as many as the reference's epochs have, if left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    board = Board(arguments.threads)
    for path in arguments.methods or [None]:
        method = load(path) if path else None
        if arguments.search:
            print(path and path.stem, "best:", board.search(method, arguments.tasks or DEVELOPMENT), flush=True)
            continue
        for number, name, updates in product(arguments.choices, arguments.tasks or (*DEVELOPMENT, *JUDGED), arguments.updates):
            choice = method.CHOICES[number] if method else {}
            seeds = range(100 * arguments.tried, 100 * arguments.tried + arguments.seeds)
            board.run(method, name, choice, seeds, updates=updates, search=arguments.tried)


if __name__ == "__main__":
    main()
