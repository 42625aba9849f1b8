"""How many samples between exchanges hold? Ways of local steps x samples between exchanges x workers, untuned.

    python studies/local/run.py fashion_mnist/mlp --multiples 64 256 --workers 4 8 --seeds 5
    python studies/local/run.py fashion_mnist/mlp --search                       # on validation data, of tasks in DEVELOPMENT only
    python studies/local/table.py

Fixed beforehand: the named recipe as reference (its runs, and those of all-reduce at each multiple, are those of studies/optimizers: rule
auto), final weights, test set once a run, the margin of the task's metric. The same samples are seen in every run. ARMS:

    local     what `plan --rule local` writes: inner updates of 4 times the tuned batch by auto's rule, plain average of weights and state
    local-8   the same with 8 times the tuned batch: what the rule wrote first
    diloco    the same inner batch by the rule that keeps the reference's optimizer; outer Nesterov 0.7 / 0.9, inner state kept
    muloco    the same inner batch by rule muon; outer Nesterov 0.7 / 0.6, inner state kept

Workers are processes of this machine. They take turns on its cores, so seconds say nothing: samples, updates and exchanges count.
--search: settings of the rule `local`, chosen by validation on two seeds of their own (100, 101).
Appends a line a finished run to <task>.jsonl (a search's: <task>-search.jsonl) beside this script, so it can be stopped and continued.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from bigbatch import Recipe, plan
from bigbatch.runner import runner_of
from bigbatch.runner.workers import WorkersRunner
from bigbatch.scaling.auto import auto, keeper
from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks import load_task, metric_of
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
ARMS = ("local", "local-8", "diloco", "muloco")
OUTER = {"diloco": (0.7, 0.9), "muloco": (0.7, 0.6)}
DEVELOPMENT = ("fashion_mnist/mlp", "fashion_mnist/cnn")
SEARCH_SEEDS = (100, 101)


def recipe_of(named, arm, multiple, workers):
    """The recipe of an arm at so many times the tuned batch between exchanges."""
    planned = plan(named, global_batch=multiple * named.batch.global_batch, rule="local", workers=workers)
    if arm == "local":
        return planned.recipe
    steps = planned.local
    if arm == "local-8":
        by = plan(named, global_batch=8 * named.batch.global_batch).recipe
        ghost = min(by.batch.ghost_batch or by.batch.global_batch, by.batch.global_batch // workers)
        own = {"batch.ghost_batch": ghost} if by.batch.ghost_batch else {}
        return by.replace({"comm": {"kind": "local_sgd", "period": multiple // 8}, **own})
    outer = OUTER[arm]
    inner = "muon" if arm == "muloco" else keeper(named.optimizer.name)
    by = plan(named, global_batch=steps.inner_batch, rule=inner).recipe
    comm = {"kind": arm, "period": steps.period, "outer_lr": outer[0], "outer_momentum": outer[1]}
    ghost = {} if steps.ghost_batch is None else {"batch.ghost_batch": steps.ghost_batch}
    return by.replace({"comm": comm, **ghost})


def searched(named, multiple):
    """Settings around those of the rule: inner multiple, outer optimizer, what becomes of the inner state."""
    for inner in (8, 4, 16):
        by = plan(named, global_batch=inner * named.batch.global_batch, rule=auto(named, inner)[0]).recipe
        for lr, momentum, state in ((1.0, 0.0, "average"), (1.0, 0.0, "keep"), (0.7, 0.6, "keep"), (1.0, 0.3, "average")):
            outer = {"outer_lr": lr, "outer_momentum": momentum}
            comm = {"kind": "diloco", "period": multiple // inner, "momentum": state, **outer}
            yield {"inner": inner, **outer, "state": state}, by.replace({"comm": comm})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--multiples", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--workers", nargs="+", type=int, default=[4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--search", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    named, facts = Recipe.named(arguments.task), {"commit": commit, "environment": environment()}
    task, metric = load_task(named.task), metric_of(load_task(named.task).metric)
    if arguments.search and arguments.task not in DEVELOPMENT:
        sys.exit(f"{arguments.task}: is a task that the rule is judged on; it is developed on {', '.join(DEVELOPMENT)}")

    def run(cell, workers, seeds):
        path = HERE / f"{arguments.task.replace('/', '-')}{'-search' if arguments.search else ''}.jsonl"
        runner = WorkersRunner(runner_of(task), workers)
        lines = run_grid(task, [cell], seeds=seeds, path=path, facts=facts, measure_test=not arguments.search, runner=runner)
        score = "validation_score" if arguments.search else "test_score"
        shown = [metric.number(metric.shown(line[score])) if line[score] is not None else "diverged" for line in lines]
        print(*cell.key.values(), *shown, flush=True)

    for workers in arguments.workers:
        for multiple in arguments.multiples:
            key = {"task": arguments.task, "multiple": multiple, "workers": workers}
            if arguments.search:
                for settings, recipe in searched(named, multiple):
                    run(Cell({**key, **settings}, recipe), workers, SEARCH_SEEDS)
                continue
            for arm in arguments.arms:
                run(Cell({**key, "arm": arm}, recipe_of(named, arm, multiple, workers)), workers, range(arguments.seeds))


if __name__ == "__main__":
    main()
