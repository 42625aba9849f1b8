"""Is the noise scale of text/gpt right, do its norm layers tell it (Gray et al. 2024), and what does measuring cost?

    python benchmarks/noise_of_language_models.py [--quick]

One run of AdamW over bytes, one seed; at several of its updates the weights are held and the noise scale is taken twice, of all parameters
and of norm layers alone:

    exact      in float64, the gradient of every one of 512 windows by itself, one backward pass each: tr(S) and |G|^2 of these windows
    estimated  as `NoiseScaleMonitor` has it in float32: updates of 64 of them in four micro-batches, 64 updates

The cost is that of noise_overhead.py: single updates of four micro-batches in turn, ratio of medians, in processor seconds, which other
programs on the machine disturb least. Writes noise_of_language_models.json beside this script.
"""

import argparse
import copy
import json
import subprocess
import time
from pathlib import Path

import torch
from noise_overhead import measure

from bigbatch.comm.ranks import Ranks
from bigbatch.noise import NoiseScaleMonitor
from bigbatch.noise.norm_layers import norm_parameters, slope
from bigbatch.tasks import load_task
from bigbatch.train.state.record import environment

NAME, POINTS, BATCH, LR, WARMUP = "text/gpt", (0, 30, 100, 300, 1000), 16, 1e-3, 50
POPULATION, UPDATE, PASSES, EPOCHS = 512, 64, 4, 8
PARTS = ("all", "norms")


def rows(dataset, index):
    inputs, targets = dataset.tensors
    return inputs[index], targets[index]


def weights_along_a_run(task, points):
    """Update to a copy of the model, trained so far."""
    torch.manual_seed(0)
    model, train = task.model(), task.splits().train
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    order, copies = torch.randperm(len(train)), {}
    for update in range(points[-1] + 1):
        if update in points:
            copies[update] = copy.deepcopy(model)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (update + 1) / WARMUP)
        x, y = rows(train, order[update * BATCH : (update + 1) * BATCH])
        loss = task.losses(model(x), y).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return copies


def exact(task, model, x, y):
    """Noise scales from the gradient of every window by itself."""
    model = copy.deepcopy(model).double()
    parameters, norms = list(model.parameters()), {id(p) for p in norm_parameters(model)}
    chosen = {"all": range(len(parameters)), "norms": [i for i, p in enumerate(parameters) if id(p) in norms]}
    total, sq = [torch.zeros_like(p) for p in parameters], [0.0] * len(parameters)
    for i in range(len(y)):
        of_one = torch.autograd.grad(task.losses(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters)
        for number, g in enumerate(of_one):
            total[number] += g
            sq[number] += float(g.square().sum())
    found = {}
    for name, numbers in chosen.items():
        signal = sum(float((total[i] / len(y)).square().sum()) for i in numbers)
        found[name] = (sum(sq[i] for i in numbers) - len(y) * signal) / (len(y) - 1) / signal
    return found


def estimated(task, model, x, y, epochs):
    """Noise scales as the monitor has them."""
    model = copy.deepcopy(model)
    monitor = NoiseScaleMonitor(model, parts={"norms": norm_parameters(model)}, population=len(y))
    for _ in range(epochs):
        for update in torch.randperm(len(y)).split(UPDATE):
            for piece in update.chunk(PASSES):
                (task.losses(model(x[piece]), y[piece]).sum() / len(update)).backward()
                monitor.micro_batch(len(piece), divisor=len(update))
            monitor.update()
            model.zero_grad()
    return {name: monitor.estimate(name) for name in PARTS}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="A look at whether it runs.")
    quick = parser.parse_args().quick
    points, population, epochs, updates = ((0, 5), 128, 1, 4) if quick else (POINTS, POPULATION, EPOCHS, 60)
    torch.set_num_threads(1)
    task = load_task(NAME)
    train = task.splits().train
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[:population]
    x, y = rows(train, index)
    at = []
    for update, model in weights_along_a_run(task, points).items():
        with torch.no_grad():
            loss = float(task.losses(model(x), y).mean())
        truth, told = exact(task, model, x, y), estimated(task, model, x, y, epochs)
        line = {"update": update, "loss": round(loss, 4)}
        for name in PARTS:
            e = told[name]
            line[name] = {
                "exact_samples": round(truth[name], 3),
                "exact_tokens": round(truth[name] * task.tokens_per_sample),
                "estimated_samples": round(e.noise_scale, 3),
                "interval": [round(e.lower, 3), round(e.upper, 3)],
                "estimated_over_exact": round(e.noise_scale / truth[name], 4),
            }
        line["all_over_norms"] = round(truth["all"] / truth["norms"], 4)
        at.append(line)
        print(json.dumps(line), flush=True)
    trained = at[1:]
    fitted = slope([line["norms"]["exact_samples"] for line in trained], [line["all"]["exact_samples"] for line in trained])
    cost = measure(NAME, Ranks(), updates, piece=16, clock=time.process_time)
    print(json.dumps({"slope": fitted, "cost": cost}), flush=True)
    if quick:
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    how = {"population": population, "global_batch": UPDATE, "micro_batches": PASSES, "updates": epochs * population // UPDATE}
    result = {"task": NAME, "points": at, "slope_of_trained": round(fitted, 4), "how": how, "cost_in_processor_seconds": cost}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({**result, "commit": commit, "environment": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
