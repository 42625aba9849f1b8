"""What does compression cost, and what does it save? fashion_mnist/cnn at 16 times the tuned batch, two hosts, 100 Mbit/s.

    python studies/compression/run.py [--seeds 3]
    python studies/compression/run.py --table

Fixed beforehand: the recipe that `bigbatch plan fashion_mnist/cnn --global-batch 2048` writes, `[comm]` as in ARMS, final weights, test set
once a run. A host is a network namespace (see benchmarks/links.py; needs root); both share this machine's two cores, a thread each. Bytes
are those that left the first host's interface, headers and evaluation included. Seconds are of an update, the median of a run's, without
evaluation. Appends a line a finished run to runs.jsonl beside this script, so it can be stopped and continued.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
TASK, MULTIPLE, HOSTS, RATE_MBIT = "fashion_mnist/cnn", 16, 2, 100
ARMS = {
    "none": {},
    "fp16": {"comm.compression": {"kind": "fp16"}},
    "PowerSGD, rank 4": {"comm.compression": {"kind": "powersgd", "rank": 4}},
    "top-k, 1 %": {"comm.compression": {"kind": "top_k", "share": 0.01}},
    "local SGD, 8 updates": {"comm.kind": "local_sgd", "comm.period": 8},
}


def rank_main(arm, seed):
    """One host's worker; the first prints a line."""
    import torch

    from bigbatch import Recipe, fit, plan
    from bigbatch.train.state.record import environment

    torch.set_num_threads(1)
    named = Recipe.named(TASK)
    recipe = plan(named, global_batch=MULTIPLE * named.batch.global_batch).recipe.replace({**ARMS[arm], "seed": seed})
    before = bytes_sent()
    result = fit(TASK, recipe, quiet=True, tensorboard=False, evaluate_every=recipe.total_epochs)
    facts = {"test_score": result.test_score, "updates": result.updates, "train_s": round(result.train_s, 2)}
    print(json.dumps({"arm": arm, "seed": seed, **facts, "bytes_sent": bytes_sent() - before, "environment": environment()}))


def bytes_sent():
    """By this host's interface so far."""
    line = next(line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


def table(lines):
    """Markdown rows."""
    yield "| comm | test accuracy, % | MB sent an update | seconds an update | seeds |"
    yield "|---|---|---|---|---|"
    for arm in ARMS:
        runs = [line for line in lines if line["arm"] == arm]
        if not runs:
            continue
        scores = [100 * line["test_score"] for line in runs]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        sent = statistics.median(line["bytes_sent"] / line["updates"] for line in runs) / 1e6
        seconds = statistics.median(line["train_s"] / line["updates"] for line in runs)
        yield f"| {arm} | {statistics.fmean(scores):.2f}{spread} | {sent:.3f} | {seconds:.3f} | {len(runs)} |"


def main():
    from links import available, shaped_hosts

    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    path = HERE / "runs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if not arguments.table:
        can, why_not = available()
        if not can:
            sys.exit(f"compression: {why_not}")
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        for seed in range(arguments.seeds):
            for arm in ARMS:
                if any((line["arm"], line["seed"]) == (arm, seed) for line in lines):
                    continue
                with shaped_hosts(HOSTS, rate_mbit=RATE_MBIT) as hosts:
                    output = hosts.run(__file__, "rank", arm, str(seed), timeout_s=1200)[0]
                lines.append({**json.loads(output.splitlines()[-1]), "commit": commit, "rate_mbit": RATE_MBIT, "hosts": HOSTS})
                with path.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(arm, seed, round(100 * lines[-1]["test_score"], 2), lines[-1]["train_s"], lines[-1]["bytes_sent"], flush=True)
    print("\n".join(table(lines)))


if __name__ == "__main__":
    rank_main(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["rank"] else main()
