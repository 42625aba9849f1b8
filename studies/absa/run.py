"""ABSA (Yao et al. 2018): how many updates does a batch that follows the curvature save, and at what accuracy?

    python studies/absa/run.py --half 0 & python studies/absa/run.py --half 1
    python studies/tables.py absa

fashion_mnist/resnet8 with the paper's optimizer and schedule (SGD at 0.1, momentum 0.9, no weight decay, a fifth of the rate after 30, 60
and 80 of 90 epochs) in a fifth of its length: 18 epochs, and with them the periods between two eigenvalues (0.2 epochs, 90 to a run) and
the patience (2 epochs). Ghost batches of 128. Nothing was tuned. Arms, each over the same samples:

    fixed, small          batch 128
    ABSA                  from 128 to 16,384, the rate in proportion; a fifth of the samples adversarial at first
    ABSA, plain           the same without adversarial samples
    ABSA, rising          our option: the reference follows the eigenvalue upwards too; with adversarial samples
    increase the batch    Smith et al. 2017: to 16,384 too, where the schedule would lower the rate
    fixed, large          batch 2,048, the linear rule with its warm-up

Three seeds, final weights, test set once a run. The eigenvalue is that of the mean over 512 training samples to a residual of 5 %. Updates
are counted, as in the paper: neither time nor samples are saved by that alone. Appends a line a finished run to runs.jsonl beside this
script; stopped at any moment, it goes on where it was. --half: the runs are dealt out to two processes of one thread each, of about equal
work.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

from bigbatch import Diverged, Recipe, fit, plan
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.tasks import load_task
from bigbatch.train.state.record import environment, read_record

HERE, TASK = Path(__file__).parent, "fashion_mnist/resnet8"
EPOCHS, PAPERS_EPOCHS = 18, 90
MULTIPLE, LARGEST = 16, 128 * 128
COST = {"ABSA": 1.4, "ABSA, plain": 1.3, "ABSA, rising": 1.4}  # of an arm's run, about, in runs at a fixed batch


def arms(epochs):
    part = epochs / PAPERS_EPOCHS
    small = Recipe.named(TASK).replace(
        {
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            "schedule": {"decay": {"kind": "step", "milestones": [30 * part, 60 * part, 80 * part], "factor": 0.2}},
            "budget": {"epochs": epochs},
        }
    )
    follows = {"kind": "absa", "largest": LARGEST, "every_epochs": part, "patience_epochs": 10 * part}
    return {
        "fixed, small": small,
        "ABSA": small.replace({"batch.rule": follows}),
        "ABSA, plain": small.replace({"batch.rule": {**follows, "share": 0.0}}),
        "ABSA, rising": small.replace({"batch.rule": {**follows, "rises": True}}),
        "increase the batch": small.replace({"batch.rule": {"kind": "increase_batch", "largest": LARGEST}}),
        "fixed, large": plan(small, global_batch=MULTIPLE * small.batch.global_batch, rule="linear").recipe,
    }


def halves(runs):
    """Two lists of about equal work: the longest run goes first, each to the half that has less."""
    parts, work = ([], []), [0.0, 0.0]
    for arm, seed in sorted(runs, key=lambda run: -COST.get(run[0], 1.0)):
        less = work.index(min(work))
        parts[less].append((arm, seed))
        work[less] += COST.get(arm, 1.0)
    return parts


def measured(task, recipe):
    """One run: scores, what looking cost, every look, and the batch from each epoch on."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings = {"evaluate_every": recipe.total_epochs, "save_every_s": 1e9, "tensorboard": False, "quiet": True}
            result = fit(task, recipe, out=folder, **settings)
        except Diverged as error:
            return {"diverged": True, "updates": error.update, "test_score": None, "validation_score": None, "train_s": None}
        record = read_record(Path(folder) / "record.jsonl")
    looks = [
        {
            "epoch": line["samples"] / recipe.num_train_samples,
            "eigenvalue": line["eigenvalues"][0],
            "residual": line["residuals"][0],
            **{name: line[name] for name in ("products", "seconds", "global_batch", "adversarial_share", "decides")},
        }
        for line in record
        if line["kind"] == "curvature"
    ]
    grown = [line for line in record if line["kind"] == "batch" and line["before"] != line["after"]]
    batches = [(line["samples"] / recipe.num_train_samples, line["after"]) for line in grown]
    scores = {"test_score": result.test_score, "validation_score": result.validation_score}
    costs = {"train_s": round(result.train_s, 2), "curvature_s": round(result.curvature_s, 2)}
    return {"diverged": False, "updates": result.updates, **scores, **costs, "batches": batches, "looks": looks}


def identity(arm, seed, recipe):
    return json.dumps([arm, seed, Recipe.from_saved(recipe).to_dict()], sort_keys=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="fewer, to try the script out")
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--arms", nargs="+", choices=list(arms(EPOCHS)))
    parser.add_argument("--out", type=Path, default=HERE / "runs.jsonl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipes = arms(arguments.epochs)
    runs = [(arm, seed) for seed in range(arguments.seeds) for arm in recipes]
    if arguments.half is not None:
        runs = halves(runs)[arguments.half]
    done = {identity(line["key"]["arm"], line["seed"], line["recipe"]) for line in readable_lines(arguments.out)}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    task, facts = load_task(TASK), {"commit": commit, "environment": environment()}
    for arm, seed in runs:
        recipe = recipes[arm].replace({"seed": seed})
        if (arguments.arms is not None and arm not in arguments.arms) or identity(arm, seed, recipe.to_dict()) in done:
            continue
        line = {"key": {"arm": arm}, "seed": seed, **measured(task, recipe), **facts, "recipe": recipe.to_dict()}
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(arm, seed, *(line.get(name) for name in ("validation_score", "test_score", "updates", "train_s", "curvature_s")), flush=True)


if __name__ == "__main__":
    main()
