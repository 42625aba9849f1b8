"""What does staleness cost in accuracy, and what does damping give back? fashion_mnist/mlp by its named recipe, asynchronous.

    python studies/staleness/run.py [--seeds 3]
    python studies/staleness/run.py --table

Fixed beforehand: the named recipe (batch 128, tuned without staleness, not tuned again), one gradient an update, W workers, of which one
that is drawn at random finishes next, within a bound of 2 W; final weights, test set once a run. One process plays all workers, by the
server's own work queue and step, so that staleness depends on W and the seed and not on this machine. W = 1 is the recipe as it is.
Added after the first results, in which the recipe as tuned collapsed from W = 2 on, because delays act like momentum of their own
(Mitliagkas et al. 2016): the same without momentum, first at the rate that it had in effect, lr / (1 - momentum), which is lost even
without staleness, then at the same lr.
Appends a line a finished run to runs.jsonl beside this script, so it can be stopped and continued.
"""

import argparse
import json
import random
import statistics
import subprocess
import time
from pathlib import Path

import torch

from bigbatch import Recipe
from bigbatch.comm.parameter_server.staleness import damping_factor
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.core.clock import Clock
from bigbatch.tasks import load_task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.sampler import index_batches
from bigbatch.train.measure.evaluate import evaluate
from bigbatch.train.parameter_server.step import build_step
from bigbatch.train.setup.build import build_model, build_optimizer, seed_everything
from bigbatch.train.state.record import environment
from bigbatch.train.update.gradient_accumulation import accumulate_gradients

PATH = Path(__file__).parent / "runs.jsonl"
TASK, WORKERS, DAMPINGS = "fashion_mnist/mlp", (1, 2, 4, 8, 16), ("none", "inverse")
MOMENTA = ("tuned", "none", "dropped")
ARMS = [(momentum, workers, damping) for momentum in MOMENTA for workers in WORKERS for damping in DAMPINGS[: 1 + (workers > 1)]]
CPU = torch.device("cpu")


def run(task, data, recipe, momentum, workers, damping, seed):
    """One run; its test score and what staleness it had."""
    if momentum == "none":
        o = recipe.optimizer
        recipe = recipe.replace({"optimizer.lr": o.lr / (1 - o.momentum)})
    if momentum != "tuned":
        recipe = recipe.replace({"optimizer.momentum": 0.0, "optimizer.nesterov": False})
    recipe = recipe.replace({"seed": seed, "comm": {"kind": "parameter_server", "mode": "asynchronous", "staleness_bound": 2 * workers}})
    seed_everything(seed)
    model, chance = build_model(task, recipe, CPU).train(), random.Random(seed)
    optimizer = build_optimizer(model, recipe)
    apply, parameters = build_step(recipe, model, optimizer), list(model.parameters())
    queue = WorkQueue(total_samples=recipe.total_samples, global_batch=recipe.batch.global_batch, staleness_bound=2 * workers)
    computing, gradients, began = {}, {}, time.perf_counter()
    while not queue.done:
        for worker in range(workers):
            if worker not in computing and (work := queue.assign(worker)) is not None:
                computing[worker] = work, [p.detach().clone() for p in parameters]
        work, pulled = computing.pop(chance.choice(sorted(computing)))
        now = [p.detach().clone() for p in parameters]
        load(parameters, pulled)
        batches = index_batches(seed, recipe.num_train_samples, work.start, iter([work.num_samples]))
        pieces = load_micro_batches(data.train, batches, device=CPU, dtype=torch.float32)
        sum_loss = accumulate_gradients(model, task, pieces, divisor=work.num_samples, precision=recipe.precision, device=CPU)
        if not bool(torch.isfinite(sum_loss)):
            return {"diverged": True, "test_score": None}
        gradients[work.id] = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        load(parameters, now)
        queue.accept(work.id)
        while ready := queue.ready():
            ((done, tau),) = ready
            for p, gradient in zip(parameters, gradients.pop(done.id), strict=True):
                p.grad = gradient
            apply(Clock(queue.samples, queue.version), damping_factor(tau, damping), 1)
            optimizer.zero_grad()
            queue.mark_applied()
    score = evaluate(model, task, data.test, recipe=recipe).score
    total = sum(queue.histogram.values())
    mean = sum(tau * count for tau, count in queue.histogram.items()) / total
    facts = {"staleness_mean": round(mean, 3), "staleness_most": max(queue.histogram), "updates": queue.version}
    return {"diverged": False, "test_score": score, **facts, "seconds": round(time.perf_counter() - began, 1)}


@torch.no_grad()
def load(parameters, values):
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


def table(lines):
    """Markdown rows."""
    names = [f"{name}{damped}" for name in ("as tuned", "lr / (1 - m), no m", "no momentum") for damped in ("", ", rate / tau")]
    yield f"| workers | staleness: mean, most | {' | '.join(names)} | seeds |"
    yield "|---" * 9 + "|"
    for workers in WORKERS:
        arms = [[x for x in lines if key_of(x)[:3] == (m, workers, d)] for m in MOMENTA for d in DAMPINGS]
        whole = [line for runs in arms for line in runs if not line["diverged"]]
        if not whole:
            continue
        staleness = f"{statistics.fmean(x['staleness_mean'] for x in whole):.2f}, {max(x['staleness_most'] for x in whole)}"
        yield f"| {workers} | {staleness} | {' | '.join(map(cell, arms))} | {len(arms[0])} |"


def key_of(line):
    return line.get("momentum", "tuned"), line["workers"], line["damping"], line["seed"]


def cell(runs):
    """Mean and spread; a run that ends at 10 % (all in one class) has collapsed."""
    scores = [100 * line["test_score"] for line in runs if not line["diverged"] and line["test_score"] > 0.11]
    lost = f"{len(runs) - len(scores)} of {len(runs)} lost" if len(scores) < len(runs) else ""
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return ", ".join(filter(None, [f"{statistics.fmean(scores):.2f}{spread}" if scores else "", lost])) or "-"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in PATH.read_text().splitlines()] if PATH.exists() else []
    if not arguments.table:
        torch.set_num_threads(1)
        task, recipe = load_task(TASK), Recipe.named(TASK)
        data = task.splits()
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        for seed in range(arguments.seeds):
            for arm in ARMS:
                if (*arm, seed) in map(key_of, lines):
                    continue
                facts = dict(zip(("momentum", "workers", "damping"), arm, strict=True), task=TASK, seed=seed)
                found = run(task, data, recipe, *arm, seed)
                lines.append({**facts, **found, "commit": commit, "environment": environment()})
                with PATH.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print({key: value for key, value in lines[-1].items() if key not in ("environment", "commit", "task")}, flush=True)
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
