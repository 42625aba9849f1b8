"""How long must branches be? The same cost in fewer and longer branches, and a higher one.

    python studies/critical_batch/lengths.py fashion_mnist/mlp fashion_mnist/cnn text/gpt

On the runs of side_by_side.py (--runs), at its checkpoints or the first two; kinds of branches as in KINDS, a fifth of the run a point
unless samples are given. Writes lengths.json beside this script; branches already made are found in --runs.
"""

import argparse
import json
import subprocess
from pathlib import Path

import torch

from bigbatch.study.branches import branches
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
KINDS = {
    "fashion_mnist/mlp": [
        {"at": [430, 1075, 2149], "windows": 3, "multiples": [1, 2, 6]},
        {"at": [430, 1075, 2149], "windows": 3, "multiples": [1, 8]},
        {"at": [430, 1075, 2149], "windows": 2, "multiples": [1, 3, 9]},
        {"at": [430, 1075, 2149], "windows": 1, "multiples": [1, 4, 16]},
        {"at": [430, 1075, 2149], "windows": 2, "multiples": [1, 4, 16], "samples": 24_000},
    ],
    "fashion_mnist/cnn": [
        {"at": [344, 860, 1719], "windows": 3, "multiples": [1, 2, 6]},
        {"at": [344, 860], "windows": 3, "multiples": [1, 8]},
        {"at": [344, 860, 1719], "windows": 2, "multiples": [1, 3, 9]},
        {"at": [344, 860, 1719], "windows": 1, "multiples": [1, 4, 16]},
        {"at": [344, 860, 1719], "windows": 2, "multiples": [1, 4, 16], "samples": 24_000},
    ],
    "text/gpt": [
        {"at": [194, 484, 968], "windows": 3, "multiples": [1, 2, 4]},
        {"at": [194, 484], "windows": 3, "multiples": [1, 4]},
        {"at": [194, 484], "windows": 1, "multiples": [1, 4]},
    ],
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs/side_by_side"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for task in arguments.tasks:
        run = arguments.runs / task.replace("/", "-")
        for kind in KINDS[task]:
            name = f"{kind['windows']}-{'-'.join(map(str, kind['multiples']))}-{kind.get('samples', 'fifth')}"
            study = branches(run, out=run / f"lengths-{name}", **kind)
            points = [{"updates": p.updates, **p.estimate.critical_batch._asdict(), "power": p.estimate.power} for p in study.points]
            points = [{name: None if value == float("inf") or value != value else value for name, value in p.items()} for p in points]
            rows.append({"task": task, **kind, "samples": study.samples, "cost": study.cost, "points": points})
            print(rows[-1], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    (HERE / "lengths.json").write_text(json.dumps({"commit": commit, "environment": environment(), "rows": rows}, indent=2) + "\n")
