"""Does making adversarial examples hide behind training? Seconds an update, on one worker and on two.

    python benchmarks/concurrent_adversarial.py [--rounds 3] [--updates 6] [--global-batch 8192]

fashion_mnist/resnet8 by its recipe, through the trainer, one thread a worker; arms in rotating order, each a run of its own:

    clean     no adversarial examples; on two workers each has half of the update
    DisAdv    tau = 0: an update waits for its own examples; on two workers each makes and trains on half of them
    ConAdv    tau = 1; on one worker in turn, on two the second makes examples for the first

An update trains on clean and adversarial samples, two passes of the clean arm: what ConAdv can hide is the making, not the second pass.
So its time on two workers is held against twice the clean one; the same two workers sharing an update out are the other thing to do with
them. The first update is left out: there is nothing to hide behind yet. Writes concurrent_adversarial.json beside this script.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from bigbatch import Recipe, fit
from bigbatch.core.hardware.machine import usable_cores
from bigbatch.train.state.agreed_flags import AgreedFlags
from bigbatch.train.state.record import environment

TASK, EPS = "fashion_mnist/resnet8", 0.03
ARMS = {"clean": None, "DisAdv": {"eps": EPS, "tau": 0}, "ConAdv": {"eps": EPS, "tau": 1, "makers": "ranks"}}


def one_run(arm, updates, global_batch):
    """Seconds of each update after the first, on every rank."""
    torch.set_num_threads(1)
    stamps, poll = [], AgreedFlags.poll

    def stamped(self, **asked):
        stamps.append(time.perf_counter())
        return poll(self, **asked)

    AgreedFlags.poll = stamped
    budget = {"budget.epochs": None, "budget.updates": updates}
    recipe = Recipe.named(TASK).replace({**budget, "batch.global_batch": global_batch, "batch.micro_batch": 128, "adversarial": ARMS[arm]})
    fit(TASK, recipe, quiet=True, tensorboard=False, measure_test=False)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps([after - before for before, after in itertools.pairwise(stamps)]))
        sys.stdout.flush()
    os._exit(0)  # gloo's threads may still want Python's lock


def seconds(arm, workers, arguments):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)] if workers > 1 else []
    command = [sys.executable, *start, __file__, "rank", arm, str(arguments.updates), str(arguments.global_batch)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, check=True, env=environ, capture_output=True, text=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1])


def summary(times):
    """Median seconds an update, and what follows from them."""
    median = {cell: round(statistics.median(values), 4) for cell, values in times.items()}
    twice = 2 * median["clean, 1"]
    ratios = {
        "ConAdv, 2 to twice clean, 1": round(median["ConAdv, 2"] / twice, 3),
        "DisAdv, 1 to twice clean, 1": round(median["DisAdv, 1"] / twice, 3),
        "DisAdv, 2 to twice clean, 1": round(median["DisAdv, 2"] / twice, 3),
        "of the making hidden": round((median["DisAdv, 1"] - median["ConAdv, 2"]) / (median["DisAdv, 1"] - twice), 3),
    }
    return median, ratios


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--global-batch", type=int, default=8192)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    cells = [(arm, workers) for workers in (1, 2) for arm in ARMS]
    times = {f"{arm}, {workers}": [] for arm, workers in cells}
    for number in range(arguments.rounds):
        for i in range(len(cells)):
            arm, workers = cells[(i + number) % len(cells)]
            times[f"{arm}, {workers}"] += [round(s, 4) for s in seconds(arm, workers, arguments)]
            print(number, arm, workers, round(statistics.median(times[f"{arm}, {workers}"]), 3), flush=True)
    median, ratios = summary(times)
    print(median, ratios, sep="\n")
    torch.set_num_threads(1)  # for the record: as in the runs
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    settings = {
        "task": TASK,
        "global_batch": arguments.global_batch,
        "micro_batch": 128,
        "updates": arguments.updates,
        "seed": 0,
        "eps": EPS,
    }
    facts = {"commit": commit, "environment": environment(), "cores": usable_cores(), **settings}
    results = {"arm, workers": list(times), "median_s": median, "ratios": ratios, "seconds": times}
    arguments.out.write_text(json.dumps({**facts, **results}, indent=2) + "\n")


if __name__ == "__main__":
    one_run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])) if sys.argv[1:2] == ["rank"] else main()
