"""What does the loop cost beside a bare hand-written one doing the same work? Ratio of medians, arms alternated.

    python benchmarks/loop_overhead.py [--rounds 9]

Both arms run the same updates (task, model, micro-batch, schedule, optimizer, precision) from the same start and end in the same
weights. `fit` runs twice over: with records, TensorBoard and checkpoints in a folder, and without a folder. Its time is the whole
loop without evaluation, compared as seconds per update. Writes loop_overhead.json beside this script.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from bigbatch import Recipe, fit
from bigbatch.core.clock import Clock
from bigbatch.schedules import schedule_of
from bigbatch.tasks import load_task
from bigbatch.train.record import environment
from bigbatch.train.sampler import epoch_permutation

UPDATES = {"fashion_mnist/mlp": 1500, "fashion_mnist/cnn": 250}


def bare(name, recipe):
    """The loop that one would write by hand for this recipe. Returns seconds and the weights."""
    task = load_task(name)
    inputs, targets = task.splits().train.tensors
    torch.manual_seed(recipe.seed)
    model = task.model(**recipe.model)
    o = recipe.optimizer
    optimizer = torch.optim.SGD(model.parameters(), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay)
    schedule, batch, low = schedule_of(recipe), recipe.batch.global_batch, recipe.precision == "bfloat16"
    order = torch.cat([epoch_permutation(recipe.seed, e, len(inputs)) for e in range(1 + recipe.total_samples // len(inputs))])
    samples = 0
    began = time.perf_counter()
    while samples < recipe.total_samples:
        index = order[samples : samples + batch]
        x, y = inputs[index], targets[index]
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = o.lr * schedule(Clock(samples))
        optimizer.step()
        optimizer.zero_grad()
        samples += len(index)
    return time.perf_counter() - began, model.state_dict()


def ours(name, recipe, out):
    """Seconds of `fit`'s training loop, records and checkpoints included, evaluation and the final checkpoint excluded."""
    result = fit(name, recipe, out=out, quiet=True, evaluate_every=1e9)
    return result.train_s, out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    results = {}
    for name, updates in UPDATES.items():
        recipe = Recipe.named(name)
        samples = updates * recipe.batch.global_batch
        recipe = recipe.replace({"budget.epochs": None, "budget.samples": samples, "batch.micro_batch": recipe.batch.global_batch})
        times = {"bare": [], "fit, no folder": [], "fit, folder": []}
        for _ in range(rounds):
            seconds, weights = bare(name, recipe)
            times["bare"].append(seconds)
            times["fit, no folder"].append(ours(name, recipe, None)[0])
            with tempfile.TemporaryDirectory() as folder:
                seconds, out = ours(name, recipe, Path(folder) / "run")
                times["fit, folder"].append(seconds)
                state = torch.load(out / "last.pt", weights_only=True)["model"]
                same = all(torch.allclose(weights[key], state[key], rtol=1e-3, atol=1e-4) for key in weights)
                if not same:
                    raise SystemExit(f"{name}: the two loops did not end in the same weights")
        median = {arm: statistics.median(values) for arm, values in times.items()}
        results[name] = {
            "updates": updates,
            "ms_per_update": {arm: round(1e3 * value / updates, 4) for arm, value in median.items()},
            "ratio": {arm: round(value / median["bare"], 4) for arm, value in median.items()},
            "seconds": {arm: [round(v, 3) for v in values] for arm, values in times.items()},
        }
        print(name, results[name]["ms_per_update"], results[name]["ratio"], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"rounds": rounds, "commit": commit, "environment": environment(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
