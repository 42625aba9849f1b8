"""What does the loop cost beside a bare hand-written one doing the same work? Ratio of medians over alternating rounds.

    python benchmarks/loop_overhead.py [--rounds 24]

All arms run the same updates (task, model, micro-batch, schedule, optimizer, precision) from the same start and must end in the same
weights. `fit` runs without a folder, and with one (a record of every update, TensorBoard); evaluation and saving are timed by neither.
The bare loop runs twice in each round: the second shows the noise of the machine. The order of the arms rotates from round to round.
Writes loop_overhead.json beside this script.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F

from bigbatch import Recipe, fit
from bigbatch.core.clock import Clock
from bigbatch.schedules import schedule_of
from bigbatch.tasks import load_task
from bigbatch.train.data.sampler import epoch_permutation
from bigbatch.train.state.record import environment

UPDATES = {"fashion_mnist/mlp": 600, "fashion_mnist/cnn": 100}


def bare(name, recipe):
    """The loop that one would write by hand for this recipe. Returns seconds and the weights."""
    task = load_task(name)
    inputs, targets = task.splits().train.tensors
    torch.manual_seed(recipe.seed)
    model = task.model(**recipe.model)
    o = recipe.optimizer
    optimizer = torch.optim.SGD(model.parameters(), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay)
    schedule, batch, low = schedule_of(recipe), recipe.batch.global_batch, recipe.precision == "bfloat16"
    samples = 0
    began = time.perf_counter()
    order = torch.cat([epoch_permutation(recipe.seed, e, len(inputs)) for e in range(1 + recipe.total_samples // len(inputs))])
    while samples < recipe.total_samples:
        index = order[samples : samples + batch]
        x, y = inputs[index], targets[index]
        with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = o.lr * schedule(Clock(samples))
        optimizer.step()
        optimizer.zero_grad()
        samples += len(index)
    return time.perf_counter() - began, model.state_dict()


def ours(name, recipe):
    """Seconds of `fit`'s training loop without a folder; the weights are not kept."""
    return fit(name, recipe, quiet=True, evaluate_every=1e9, measure_test=False).train_s, None


def ours_with_folder(name, recipe):
    """Seconds of `fit`'s training loop with a record and TensorBoard, and the weights of its last checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        seconds = fit(name, recipe, out=out, quiet=True, evaluate_every=1e9, measure_test=False).train_s
        return seconds, torch.load(out / "last.pt", weights_only=True)["model"]


ARMS = {"bare": bare, "bare, again": bare, "fit, no folder": ours, "fit, folder": ours_with_folder}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=24)
    rounds = parser.parse_args().rounds
    results = {}
    for name, updates in UPDATES.items():
        recipe = Recipe.named(name)
        samples = updates * recipe.batch.global_batch
        recipe = recipe.replace({"budget.epochs": None, "budget.samples": samples, "batch.micro_batch": recipe.batch.global_batch})
        times = {arm: [] for arm in ARMS}
        for number in range(-1, rounds):  # the first round warms up and is not counted
            weights = []
            for i in range(len(ARMS)):
                arm = list(ARMS)[(i + number) % len(ARMS)]
                seconds, state = ARMS[arm](name, recipe)
                weights += [state] if state is not None else []
                if number >= 0:
                    times[arm].append(seconds)
            for state in weights[1:]:
                if not all(torch.allclose(weights[0][key], state[key], rtol=1e-2, atol=1e-3) for key in state):
                    raise SystemExit(f"{name}: the loops did not end in the same weights")
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
