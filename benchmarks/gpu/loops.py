"""What `fit` and measuring noise cost beside a bare loop that does the same work: seconds an update.

An update's time is the difference of two runs, of which one has more updates, so that starts, evaluations and what the GPU still has to
do at the end of either do not count.
"""

import statistics
import time
from contextlib import nullcontext

import torch
from benchmarks.gpu.part import Part
from benchmarks.gpu.tasks import Shipped, Transformer, transformer_recipe

from bigbatch import Recipe, fit
from bigbatch.core.clock import Clock
from bigbatch.schedules import schedule_of
from bigbatch.train.data.sampler import epoch_permutation
from bigbatch.train.setup.build import build_model, build_optimizer


def bare(part, task, recipe, splits):
    """The loop that one would write by hand, its data on the device. Returns seconds."""
    device, low = part.device, recipe.precision == "bfloat16"
    began = time.perf_counter()
    inputs, targets = (t.to(device) for t in splits.train.tensors)
    torch.manual_seed(recipe.seed)
    model = build_model(task, recipe, device).train()
    optimizer, schedule, peak = build_optimizer(model, recipe), schedule_of(recipe), recipe.optimizer.lr
    n, batch, samples = len(inputs), recipe.batch.global_batch, 0
    order = torch.cat([epoch_permutation(recipe.seed, e, n) for e in range(1 + recipe.total_samples // n)]).to(device)
    while samples < recipe.total_samples:
        index = order[samples : samples + batch]
        with torch.autocast(device.type, torch.bfloat16) if low else nullcontext():
            outputs = model(inputs[index])
        task.losses(outputs, targets[index]).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(Clock(samples))
        optimizer.step()
        optimizer.zero_grad()
        samples += len(index)
    part.wait()
    return time.perf_counter() - began


def ours(part, task, recipe, splits, **options):  # noqa: ARG001
    began = time.perf_counter()
    fit(task, recipe, quiet=True, evaluate_every=1e9, measure_test=False, device=part.device, **options)
    part.wait()
    return time.perf_counter() - began


def measure(part, name, task, recipe, updates, rounds):
    splits = task.splits()
    task.splits = lambda: splits  # made once
    batch = recipe.batch.global_batch
    whole = recipe.replace({"batch.micro_batch": batch})
    quarters = recipe.replace(
        {"batch.micro_batch": -(-batch // 4)} | ({"batch.ghost_batch": batch // 4} if recipe.batch.ghost_batch else {})
    )
    arms = {
        "bare": lambda r: bare(part, task, r(whole), splits),
        "fit": lambda r: ours(part, task, r(whole), splits),
        "fit in four": lambda r: ours(part, task, r(quarters), splits),
        "fit in four, noise measured": lambda r: ours(part, task, r(quarters), splits, measure_noise=True),
    }

    def updates_of(number):
        return lambda r: r.replace({"budget": {"updates": number}})

    times = {arm: [] for arm in arms}
    for number in range(0 if part.quick else -1, rounds):  # the first warms up
        for arm, run in arms.items():
            short, long = run(updates_of(max(updates // 8, 2))), run(updates_of(max(updates // 8, 2) + updates))
            if number >= 0:
                times[arm].append((long - short) / updates)
        if number >= 0 and part.left() < 10:
            break
    median = {arm: statistics.median(values) for arm, values in times.items()}
    for arm, value in median.items():
        part.row(f"{name}, {arm}", round(1e3 * value, 4), "ms an update", rounds=[round(1e3 * v, 4) for v in times[arm]])
    part.row(f"{name}: fit over a bare loop", round(median["fit"] / median["bare"], 4), goal=("<=", 1.03))
    cost = median["fit in four, noise measured"] / median["fit in four"]
    part.row(f"{name}: noise measured over not", round(cost, 4), goal=("<=", 1.02))


def main():
    part = Part("loops")
    updates, rounds = (3, 1) if part.quick else (100, 3)
    language = Transformer(small=part.quick)
    cases = {"transformer": (language, transformer_recipe(language), updates if part.quick else 16)}
    for name in ("fashion_mnist/resnet8",) if part.quick else ("fashion_mnist/cnn", "fashion_mnist/resnet8"):
        recipe = Recipe.named(name)
        if part.quick:
            recipe = recipe.replace(
                {
                    "num_train_samples": 512,
                    "precision": "float32",
                    "batch.global_batch": 32,
                    **({"batch.ghost_batch": 32} if recipe.batch.ghost_batch else {}),
                }
            )
        cases[name] = Shipped(name, num_samples=recipe.num_train_samples), recipe, updates
    for name, (task, recipe, number) in cases.items():
        with part.about(name, least_s=15) as wanted:
            if wanted:
                if name == "transformer":
                    part.row("transformer: parameters", sum(p.numel() for p in task.model().parameters()) / 1e6, "M")
                measure(part, name, task, recipe, number, rounds)
    if part.left() > 0:
        part.finish()


if __name__ == "__main__":
    main()
