"""Seconds to a target on slow links: local steps against all-reduce, PowerSGD and gossip. Four hosts, 100 Mbit/s, 20 ms one way.

    python studies/local/slow_links.py [--task fashion_mnist/mlp] [--seeds 3] [--arms all-reduce ...]
    python studies/local/slow_links.py --table

Fixed beforehand: inner updates of 8 times the tuned batch by rule auto (1,024 samples over the workers, 538 of them), the same in all
arms but for how workers go together; 20 evaluations on validation data, their time left out. The target is the mean final validation
score of the all-reduce arm, minus the margin of the metric (0.5 points). Each run goes to its end; its seconds to the target are its
updates up to the first evaluation that reaches it, times its mean seconds an update. Test set once a run, with the final weights. A host
is a network namespace (benchmarks/links.py; needs root); all share this machine's two cores, a thread each, and other work may use what
they leave (niced). Bytes are those that left the first host's interface. Appends a line a run to slow_links.jsonl beside this script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
HOSTS, RATE_MBIT, DELAY_MS, EVALUATIONS = 4, 100, 20, 20
LOCAL = {"comm.kind": "local_sgd", "comm.momentum": "average"}
PLAIN = {"comm.outer_lr": 1.0, "comm.outer_momentum": 0.0}
STREAMING = {"comm.kind": "streaming_diloco", "comm.fragments": 2, **PLAIN}
ARMS = {
    "all-reduce": {},
    "PowerSGD, rank 4": {"comm.compression": {"kind": "powersgd", "rank": 4}},
    "gossip, one peer": {"comm.kind": "gossip", "comm.topology": "one_peer_exponential"},
    "local, H = 8": {**LOCAL, "comm.period": 8},
    "local, H = 32": {**LOCAL, "comm.period": 32},
    "4 bits, H = 8": {"comm.kind": "diloco", "comm.period": 8, **PLAIN, "comm.compression": {"kind": "int4"}},
    "4 bits, H = 32": {"comm.kind": "diloco", "comm.period": 32, **PLAIN, "comm.compression": {"kind": "int4"}},
    "streaming, 4 bits, H = 8": {**STREAMING, "comm.period": 8, "comm.overlap": 3, "comm.compression": {"kind": "int4"}},
    "SparseLoCo, H = 8": {"comm.kind": "diloco", "comm.period": 8, **PLAIN, "comm.compression": {"kind": "sparse_loco"}},
    "NoLoCo, H = 8": {"comm.kind": "noloco", "comm.period": 8},
}


def rank_main(task, arm, seed, out):
    """One host's worker; the first prints a line."""
    import torch

    from bigbatch import Recipe, fit, plan
    from bigbatch.train.state.record import environment, read_record

    torch.set_num_threads(1)
    named = Recipe.named(task)
    inner = plan(named, global_batch=8 * named.batch.global_batch).recipe
    recipe = inner.replace({**ARMS[arm], "seed": seed, "batch.micro_batch": inner.batch.global_batch // HOSTS})
    before = bytes_sent()
    result = fit(task, recipe, quiet=True, tensorboard=False, out=out, evaluate_every=named.budget.epochs / EVALUATIONS, save_every_s=1e9)
    if os.environ["RANK"] != "0":
        return
    lines = [line for line in read_record(Path(out) / "record.jsonl") if line["kind"] == "evaluation" and line["split"] == "validation"]
    facts = {"test_score": result.test_score, "updates": result.updates, "train_s": round(result.train_s, 2)}
    curve = [[line["update"], line["score"]] for line in lines]
    sent = {"bytes_sent": bytes_sent() - before, "environment": environment()}
    print(json.dumps({"task": task, "arm": arm, "seed": seed, **facts, "curve": curve, **sent}))


def bytes_sent():
    """By this host's interface so far."""
    line = next(line for line in Path("/proc/self/net/dev").read_text().splitlines() if line.strip().startswith("eth0:"))
    return int(line.split(":")[1].split()[8])


def to_target(line, target):
    """Seconds of a run until validation first reached the target; None if it never did."""
    updates = next((update for update, score in line["curve"] if score >= target), None)
    return None if updates is None else updates * line["train_s"] / line["updates"]


def table(lines):
    """Markdown rows, a table a task."""
    for task in sorted({line["task"] for line in lines}):
        of_task = [line for line in lines if line["task"] == task]
        whole = [line for line in of_task if line["arm"] == "all-reduce"]
        target = statistics.fmean(line["curve"][-1][1] for line in whole) - 0.005
        took = statistics.median(seconds for line in whole if (seconds := to_target(line, target)) is not None)
        yield f"{task}: target {100 * target:.2f} % on validation data\n"
        yield "| arm | test accuracy, % | seconds to the target | times faster | ms an update | MB sent an update | seeds |"
        yield "|---|---|---|---|---|---|---|"
        for arm in ARMS:
            if not (runs := [line for line in of_task if line["arm"] == arm]):
                continue
            scores = [100 * line["test_score"] for line in runs]
            spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            times = [to_target(line, target) for line in runs]
            reached = statistics.median(times) if None not in times else None
            seconds = f"{reached:.1f} | {took / reached:.1f}" if reached is not None else f"{times.count(None)} of {len(times)} never | -"
            update = 1000 * statistics.median(line["train_s"] / line["updates"] for line in runs)
            sent = statistics.median(line["bytes_sent"] / line["updates"] for line in runs) / 1e6
            yield f"| {arm} | {statistics.fmean(scores):.2f}{spread} | {seconds} | {update:.0f} | {sent:.3f} | {len(runs)} |"
        yield ""


def main():
    from links import available, shaped_hosts

    parser = argparse.ArgumentParser()
    parser.add_argument("--task", default="fashion_mnist/mlp")
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    path = HERE / "slow_links.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if arguments.table:
        print("\n".join(table(lines)))
        return
    can, why_not = available()
    if not can:
        sys.exit(f"slow_links: {why_not}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    for seed in range(arguments.seeds):
        for arm in arguments.arms:
            if any((line["task"], line["arm"], line["seed"]) == (arguments.task, arm, seed) for line in lines):
                continue
            with TemporaryDirectory() as out, shaped_hosts(HOSTS, rate_mbit=RATE_MBIT, delay_ms=DELAY_MS) as hosts:
                output = hosts.run(__file__, "rank", arguments.task, arm, str(seed), f"{out}/run", timeout_s=2400)[0]
            lines.append(
                {**json.loads(output.splitlines()[-1]), "commit": commit, "rate_mbit": RATE_MBIT, "delay_ms": DELAY_MS, "hosts": HOSTS}
            )
            with path.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(arm, seed, lines[-1]["test_score"], lines[-1]["train_s"], flush=True)


if __name__ == "__main__":
    rank_main(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]) if sys.argv[1:2] == ["rank"] else main()
