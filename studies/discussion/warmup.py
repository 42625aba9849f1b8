"""Why does a warm-up help early? Curvature and gradient noise of the first updates of a large batch, with and without one.

    python studies/discussion/warmup.py

fashion_mnist/mlp by SGD with momentum at 16 times its batch: rates 0.1 (the tuned batch's), 0.2 and 0.4 (times the root), reached at
once or after 50 updates in a straight line, then constant. Every 5 updates the largest eigenvalue of the Hessian on 512 training images; of
every update the noise of the gradient. Three seeds. Writes warmup.jsonl, a line a run.
"""

import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bigbatch import Diverged, Recipe, fit
from bigbatch.core.storage.json_lines import append_line, stored_lines
from bigbatch.train.state.record import environment, read_record

HERE = Path(__file__).parent
TASK, BATCH, UPDATES = "fashion_mnist/mlp", 2048, 150
RATES, WARMUPS, SEEDS = (0.1, 0.2, 0.4), (0, 50), (0, 1, 2)
PATH = HERE / "warmup.jsonl"


def recipe_of(lr, warmup, seed):
    """A constant rate after a warm-up of so many updates."""
    return Recipe.named(TASK).replace(
        {
            "batch.global_batch": BATCH,
            "batch.micro_batch": 256,
            "optimizer.lr": lr,
            "schedule.warmup": {"kind": "gradual", "updates": warmup} if warmup else {"kind": "none"},
            "schedule.decay": {"kind": "constant"},
            "budget": {"updates": UPDATES},
            "curvature": {"every_updates": 5, "samples": 512},
            "seed": seed,
        }
    )


def measured(recipe):
    """What a run's record tells of its first updates."""
    with TemporaryDirectory() as folder:
        diverged = False
        try:
            fit(TASK, recipe, out=folder, quiet=True, tensorboard=False, measure_noise=True, measure_test=False)
        except Diverged:
            diverged = True
        lines = read_record(Path(folder) / "record.jsonl")
    updates = {line["update"]: line for line in lines if line["kind"] == "update"}
    noise = {line["update"]: line["signal_and_noise"]["all"] for line in lines if line["kind"] == "noise"}
    curvature = {line["update"]: line["eigenvalues"][0] for line in lines if line["kind"] == "curvature"}
    return {
        "diverged": diverged,
        "loss": [updates[u]["loss"] for u in sorted(updates)],
        "lr": [updates[u]["lr"] for u in sorted(updates)],
        "noise_scale": [
            statistics.fmean(noise[u][1] for u in part) / max(statistics.fmean(noise[u][0] for u in part), 1e-12)
            for part in parts(sorted(noise))
        ],
        "eigenvalue": [[u, curvature[u]] for u in sorted(curvature)],
    }


def parts(updates, size=10):
    """Updates in tens, over which signal and noise are averaged."""
    return [updates[i : i + size] for i in range(0, len(updates) - size + 1, size)]


def identity(line):
    """What a line is of."""
    return json.dumps([line["rate"], line["warmup"], line["seed"]])


def main():
    torch.set_num_threads(1)
    done = {identity(line) for line in stored_lines(PATH, identity)}
    for seed in SEEDS:
        for rate in RATES:
            for warmup in WARMUPS:
                line = {"rate": rate, "warmup": warmup, "seed": seed}
                if identity(line) not in done:
                    line |= measured(recipe_of(rate, warmup, seed)) | {"environment": environment()}
                    append_line(PATH, line)
                    print(rate, warmup, seed, line["loss"][-1], max(e for _, e in line["eigenvalue"]), flush=True)


if __name__ == "__main__":
    main()
