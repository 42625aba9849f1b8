"""Which rule holds how far? Every rule at growing multiples of the tuned batch, over seeds, against the reference.

    python studies/scaling_rules/run.py fashion_mnist/mlp [...] [--seeds 5] [--batches 512 1024 ...] [--out DIR]

Fixed beforehand: the named recipe as reference, the samples seen (so a batch 64 times larger has 64 times fewer updates), the margin of
0.5 points and Welch's test over all seeds (95 %, one-sided; an arm with a diverged run is lost), final weights, test set once a run.
Writes `<task>.json` beside this script; runs that are found in --out are not repeated, so the study can be stopped and continued.
"""

import argparse
import json
import math
import statistics
import subprocess
from pathlib import Path

import torch

from bigbatch import scale
from bigbatch.study.comparison.noninferiority import Verdict, noninferiority
from bigbatch.train.state.record import environment

HERE = Path(__file__).parent
RULES = ("linear", "sqrt", "legw")


def summary(comparison, arm):
    scores, reference = arm.scores, comparison.arms[0]
    is_reference = arm is reference
    welch = noninferiority(scores, reference.scores, margin=0.5) if scores and reference.scores else None
    if reference.num_diverged:
        verdict = Verdict("undecided", math.nan, None, None)
    else:
        verdict = welch if welch and not arm.num_diverged else Verdict("lost", math.nan, None, None)
    return {
        "arm": arm.name,
        "global_batch": arm.recipe.batch.global_batch,
        "updates": arm.recipe.num_updates,
        "test_accuracy_mean": round(statistics.fmean(scores), 3) if scores else None,
        "test_accuracy_std": round(statistics.stdev(scores), 3) if len(scores) > 1 else None,
        "test_accuracy": [round(score, 2) for score in scores],
        "diverged": arm.num_diverged,
        "outcome": None if is_reference else verdict.outcome,
        "interval": None if is_reference else [None if bound is None else round(bound, 3) for bound in (verdict.lower, verdict.upper)],
        "train_s": round(statistics.median(r.train_s for r in arm.results if not r.diverged), 2) if scores else None,
        "warnings": list(comparison.plan.warnings) if arm is comparison.arms[2] else [],
    }


def study(task, batches, seeds, out):
    rows = []
    for batch in batches:
        for rule in RULES:
            comparison = scale(task, to=batch, rule=rule, seeds=seeds, max_seeds=seeds, out=out / task.replace("/", "-"), quiet=True)
            arms = comparison.arms if not rows else comparison.arms[1:] if rule == RULES[0] else comparison.arms[2:]
            for arm in arms:
                rows.append(summary(comparison, arm))
                row = rows[-1]
                print(
                    task, row["arm"], row["global_batch"], row["test_accuracy_mean"], row["test_accuracy_std"], row["outcome"], flush=True
                )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    facts = {"task": task, "seeds": list(range(seeds)), "margin": 0.5, "commit": commit, "environment": environment(), "rows": rows}
    (HERE / f"{task.replace('/', '-')}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--out", type=Path, default=Path("runs/studies/scaling_rules"))
    parser.add_argument("--threads", type=int, default=1, help="one: two studies side by side on two cores")
    parser.add_argument("tasks", nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.tasks:
        study(name, arguments.batches, arguments.seeds, arguments.out)
