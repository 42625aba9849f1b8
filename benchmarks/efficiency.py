"""How much faster are several workers? Samples per second of the trainer at 1, 2, 3 and 4 workers on this machine, one thread each.

    python benchmarks/efficiency.py [--rounds 3]

fashion_mnist/cnn, float32, 60 updates of 1,024 samples (1.117 epochs), the same at any number of workers; the numbers alternate within
each round.
Efficiency is samples/s over those of one worker times the cores that there are for the workers: beyond the number of cores they share.
Writes efficiency.json beside this script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bigbatch.core.hardware.machine import usable_cores
from bigbatch.train.state.record import environment

CHANGES = {"batch.global_batch": 1024, "batch.micro_batch": 128, "budget.epochs": 1.117, "precision": "float32"}
NUMBERS = (1, 2, 3, 4)


def samples_per_s(workers):
    with tempfile.TemporaryDirectory() as folder:
        sets = [word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")]
        command = [sys.executable, "-m", "bigbatch", "train", "fashion_mnist/cnn", *sets, "--workers", str(workers), "--quiet"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--out", f"{folder}/run"], check=True, env=environ, stdout=subprocess.DEVNULL, timeout=300)
        return json.loads(Path(folder, "run", "result.json").read_text())["samples_per_s"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rates = {n: [] for n in NUMBERS}
    for number in range(arguments.rounds):
        for i in range(len(NUMBERS)):
            n = NUMBERS[(i + number) % len(NUMBERS)]
            rates[n].append(round(samples_per_s(n), 1))
    cores, median = usable_cores(), {n: statistics.median(values) for n, values in rates.items()}
    rows = [
        {
            "workers": n,
            "samples_per_s": median[n],
            "speed_up": round(median[n] / median[1], 3),
            "efficiency": round(median[n] / (median[1] * min(n, cores)), 3),
        }
        for n in NUMBERS
    ]
    print(*rows, sep="\n")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"commit": commit, "environment": environment(), "cores": cores, "rows": rows, "all_samples_per_s": rates}
    Path(__file__).with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
