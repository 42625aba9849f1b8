"""Which method holds how far? Methods x multiples of the tuned batch, the same samples seen, untuned.

    python studies/optimizers/run.py fashion_mnist/mlp --methods muon lamb --multiples 16 64 --seeds 5
    python studies/optimizers/run.py fashion_mnist/mlp --methods muon lamb --multiples 64 --tuned         # rates searched, the same for all
    python studies/optimizers/run.py fashion_mnist/mlp --methods adam --multiples 64 --epochs 2 4         # times the reference's epochs
    python studies/optimizers/run.py text/gpt-muon --multiples 4 16 64 --seeds 3                          # the reference that has Muon
    python studies/optimizers/table.py

Fixed beforehand: the named recipe as reference (its runs are those of studies/reference_recipes), each method as `bigbatch plan` writes
it with nothing tuned to the task or the multiple, final weights, test set once a run. "full" is the whole training set in one update.
--tuned multiplies the rates of the plan by the power of two, from 1/8 to 8, that gave the best mean validation accuracy over two seeds
of its own (a factor with a diverged run is out; the smaller of equals). Multiple 1 of method none is the reference itself. The margin is
the metric's: 0.5 points of accuracy, 0.02 nats per byte. References with AdamW and Muon were measured with METHODS of their own.
Appends a line a finished run to <task>.jsonl (a search's: <task>-search.jsonl) beside this script, so it can be stopped and continued.
"""

import argparse
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
sys.path.insert(0, str(HERE.parents[1]))
from studies.optimizers.variants import changed_by  # noqa: E402 this script may be run from anywhere

FACTORS = [2.0**i for i in range(-3, 4)]
SEARCH_SEEDS = (100, 101)
METHODS = ("none", "linear", "sqrt", "legw", "lars", "lamb", "adam", "adamp", "muon")
ADAPTIVE = {
    "adamw": ("none", "sqrt", "legw", "adamw", "sde", "timescale", "lamb", "muon"),
    "muon": ("none", "sqrt", "legw", "adamw", "lamb", "muon"),
}
"""By the reference's optimizer; "auto" is one of them, see table.py."""


def batch_of(recipe, multiple):
    return recipe.num_train_samples if multiple == "full" else recipe.batch.global_batch * int(multiple)


def cells(task, methods, multiples, epochs, precision, reference=None):
    named = reference or Recipe.named(task)
    own = {} if precision in (None, named.precision) else {"precision": precision}
    named = named.replace(own)
    for multiple, times, method in product(multiples, epochs, methods):
        reference = named.replace({"budget.epochs": named.budget.epochs * times})
        batch = batch_of(reference, multiple)
        if batch <= reference.num_train_samples:
            key = {"task": task, "method": method, "multiple": multiple} | ({} if times == 1 else {"epochs": times}) | own
            planned = plan(reference, global_batch=batch, rule=method.partition(",")[0]).recipe
            yield Cell(key, planned.replace(changed_by(method, reference, planned)))


def methods_of(task):
    """What is compared on a reference, by its optimizer."""
    return ADAPTIVE.get(Recipe.named(task).optimizer.name, METHODS)


def scaled(cell, factor):
    """The cell with all its rates times a factor."""
    names = ["optimizer.lr", *(["optimizer.adam_lr"] if cell.recipe.optimizer.name == "muon" else [])]
    recipe = cell.recipe.replace({name: factor * cell.recipe.get(name) for name in names})
    return Cell({**cell.key, "factor": factor}, recipe)


def tuned(cell, run, metric):
    """The cell with the factor that validation chose; `run(cells, seeds, search)` runs some."""
    means = {}
    for factor in FACTORS:
        scores = [line["validation_score"] for line in run(scaled(cell, factor), SEARCH_SEEDS, True)]
        if None not in scores:
            means[factor] = statistics.fmean(scores)
    return scaled(cell, min(means, key=lambda factor: metric.rank(means[factor]), default=1.0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--methods", nargs="+", help="all of the reference's if left out")
    parser.add_argument("--multiples", nargs="+", default=["4", "16", "64", "256", "full"])
    parser.add_argument("--epochs", nargs="+", type=float, default=[1.0], help="times the reference's")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--precision", help="other than the named recipe's, the reference included; bfloat16 is slow on older processors")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="one: two studies side by side on two cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # gradients of an LSTM fade into such numbers, with which x86 is 3 to 6 times slower
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    task, facts = load_task(Recipe.named(arguments.task).task), {"commit": commit, "environment": environment()}
    metric, methods = metric_of(task.metric), arguments.methods or methods_of(arguments.task)

    def run(cell, seeds, search=False):
        path = HERE / f"{arguments.task.replace('/', '-')}{'-search' if search else ''}.jsonl"
        lines = run_grid(task, [cell], seeds=seeds, path=path, facts=facts, measure_test=not search)
        score = "validation_score" if search else "test_score"
        print(*cell.key.values(), [line[score] and metric.number(metric.shown(line[score])) for line in lines], flush=True)
        return lines

    for cell in cells(arguments.task, methods, arguments.multiples, arguments.epochs, arguments.precision):
        run(tuned(cell, run, metric) if arguments.tuned else cell, range(arguments.seeds))
