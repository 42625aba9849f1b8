"""Choose the rates of decentralised/run.py on the validation set: all-reduce, as one worker (the same to rounding).

    python studies/decentralised/search.py --seeds 100
    python studies/decentralised/search.py --seeds 100 101 102 --tasks fashion_mnist/cnn

Momentum SGD without nesterov, as DecentLaM needs it; warm-up over a quarter of the run, then the recipe's cosine. Appends a line a run to
search.jsonl beside this script.
"""

import argparse
from pathlib import Path

import torch
from run import MULTIPLES, TASKS, classical

from bigbatch.study.grid import Cell, run_grid
from bigbatch.tasks.task import load_task
from bigbatch.train.state.record import environment

RATES = {"fashion_mnist/cnn": (0.05, 0.1, 0.15, 0.2, 0.4, 0.8), "fashion_mnist/resnet8": (0.4, 0.8, 1.6)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for task in arguments.tasks:
        cells = [Cell({"task": task, "multiple": m, "lr": lr}, classical(task, m, lr)) for m in MULTIPLES for lr in RATES[task]]
        path, facts = Path(__file__).parent / "search.jsonl", {"environment": environment()}
        for line in run_grid(load_task(task), cells, seeds=arguments.seeds, path=path, facts=facts, measure_test=False):
            print(line["key"], line["validation_score"], line["train_s"], flush=True)
