"""How long eight runs of one thread take two at a time, against one after another; the start of worker processes is counted.

    python benchmarks/parallel_runs.py [--rounds 2] [--epochs 300]

Rounds alternate; medians and their ratio are written to benchmarks/parallel_runs.json. Results must be equal.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from bigbatch import Recipe
from bigbatch.core.version import __version__
from bigbatch.runner import Request, TaskRunner
from bigbatch.runner.jobs import Job, OneAfterAnother, run_jobs
from bigbatch.runner.parallel import Parallel
from bigbatch.tasks import load_task
from bigbatch.train.state.record import environment

RUNS, AT_ONCE = 8, 2


def measure(pool, recipe):
    with tempfile.TemporaryDirectory() as folder:
        seeds = [Job(recipe.replace({"seed": seed}), Request(out=Path(folder) / str(seed), title=f"seed {seed}")) for seed in range(RUNS)]
        began = time.perf_counter()
        with pool:
            results = run_jobs(pool, TaskRunner(load_task("digits/mlp"), tensorboard=False), seeds)
        return time.perf_counter() - began, [result.test_loss for result in results]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=300.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": asked.epochs, "batch.micro_batch": 32})
    seconds = {"one after another": [], "two at once": []}
    for _ in range(asked.rounds):
        losses = []
        for name, pool in (("one after another", OneAfterAnother()), ("two at once", Parallel(AT_ONCE))):
            took, found = measure(pool, recipe)
            seconds[name].append(round(took, 2))
            losses.append(found)
            print(f"{name}: {took:.1f} s", flush=True)
        assert losses[0] == losses[1]
    alone, together = (statistics.median(values) for values in seconds.values())
    told = {"runs": RUNS, "epochs": asked.epochs, "seconds": seconds, "ratio": round(together / alone, 3), "equal_results": True}
    told |= {"goal": 0.6, "version": __version__, "environment": environment()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    print(f"two at once take {together / alone:.2f} of one after another")


if __name__ == "__main__":
    main()
