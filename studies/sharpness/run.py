"""Keskar's finding, done again: does a large batch end in a sharper minimum, and generalise less? And after our own rule?

    python studies/sharpness/run.py --half 0 & python studies/sharpness/run.py --half 1
    python studies/sharpness/run.py --plot
    python studies/tables.py sharpness

Fixed beforehand: fashion_mnist/mlp from five starts and fashion_mnist/cnn from three; Adam at its usual rate of 1e-3, constant, without
weight decay; arms from one start:

    SB      batch 256, until the training loss stops improving
    LB      batch 5,500, a tenth of the training set, likewise
    auto    LB's batch and epochs, by what bigbatch.plan(SB's recipe, global_batch=5500, rule="auto") says

"Stops improving": the best epoch of the last ten is not 1 % below the best before them; an epoch's loss is the mean of its updates', as
trained. A ceiling of 250 epochs holds as well, for the time it takes, and whether it ended a run is recorded. Test set once a run,
final weights. On the first 10,000 training images, as they are: Keskar's sharpness, both eps, the full space and 100 random dimensions
(the same for the arms of a start), SAM's and adaptive sharpness; and loss and accuracy, with the test set's, at 25 points along the
straight path and the arc from SB to LB and from SB to auto.

Appends a line a finished run or path to <task>.jsonl beside this script, with weights in weights/ until its paths are measured; stopped at
any moment, it goes on where it was. --half: starts are dealt out to two processes of one thread each, of about equal work.
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from bigbatch import Diverged, Recipe, fit, plan
from bigbatch.core.storage.json_lines import readable_lines
from bigbatch.core.storage.writing import make_folder
from bigbatch.curvature import adaptive_sharpness, keskar_sharpness, path, sam_sharpness
from bigbatch.noise.weight_distance import distance
from bigbatch.tasks import load_task
from bigbatch.train.data.loader import load_micro_batches
from bigbatch.train.data.sampler import sample_indices
from bigbatch.train.measure.evaluate import evaluate
from bigbatch.train.setup.build import build_model, build_optimizer, seed_everything
from bigbatch.train.state.checkpoint import read_checkpoint
from bigbatch.train.state.record import environment, read_record
from bigbatch.train.update.gradient_accumulation import accumulate_gradients

HERE, CPU = Path(__file__).parent, torch.device("cpu")
STARTS = {"fashion_mnist/mlp": 5, "fashion_mnist/cnn": 3}
CEILING = 250
SMALL, LARGE, MICRO, PASS = 256, 5_500, 256, 500
PATIENCE, GAIN = 10, 0.01  # epochs; of the loss
IMAGES, POINTS = 10_000, 25
EPSILONS, SUBSPACES, RHO, ADAPTIVE_RHO = (1e-3, 5e-4), (None, 100), 0.05, 0.5
PAIRS, BENDS = (("SB", "LB"), ("SB", "auto")), (None, "arc")
HALVES = {"fashion_mnist/mlp": ((0, 1, 2), (3, 4)), "fashion_mnist/cnn": ((0,), (1, 2))}


def recipe_of(task, batch, seed, epochs):
    batches = {"batch.global_batch": batch, "batch.micro_batch": MICRO}
    adam = {"optimizer.name": "adam", "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.0}
    constant = {"schedule.warmup.kind": "none", "schedule.decay.kind": "constant"}
    return Recipe.named(task).replace({**adam, **constant, **batches, "budget.epochs": epochs, "seed": seed})


def stopped(losses):
    """Whether the losses of epochs have stopped improving."""
    return len(losses) > PATIENCE and min(losses[-PATIENCE:]) > (1 - GAIN) * min(losses[:-PATIENCE])


def trained_until_it_stops(task, recipe):
    """A run whose length its own loss decides, which no recipe's budget does; else as `fit`. An epoch is of whole updates."""
    seed_everything(recipe.seed)
    model, train, batch = build_model(task, recipe, CPU).train(), task.splits().train, recipe.batch.global_batch
    optimizer, losses, start = build_optimizer(model, recipe), [], 0
    updates_per_epoch = math.ceil(recipe.num_train_samples / batch)
    while len(losses) < recipe.total_epochs and not stopped(losses):
        total = 0.0
        for _ in range(updates_per_epoch):
            indices = sample_indices(recipe.seed, recipe.num_train_samples, start, batch).split(MICRO)
            pieces = load_micro_batches(train, indices, device=CPU, dtype=torch.float32)
            total += accumulate_gradients(model, task, pieces, divisor=batch, precision=recipe.precision, device=CPU).item()
            optimizer.step()
            optimizer.zero_grad()
            start += batch
        losses.append(total / (updates_per_epoch * batch))
    return model, {"updates": updates_per_epoch * len(losses), "epochs": len(losses), "stopped": stopped(losses), "losses": losses}


def trained_by_fit(task, recipe):
    with tempfile.TemporaryDirectory() as folder:
        settings = {"evaluate_every": recipe.total_epochs, "save_every_s": 1e9, "tensorboard": False, "measure_test": False}
        result = fit(task, recipe, out=Path(folder, "run"), quiet=True, **settings)
        model = build_model(task, recipe, CPU)
        model.load_state_dict(read_checkpoint(Path(folder, "run", "last.pt"), CPU)["model"])
        each = [line["loss"] for line in read_record(Path(folder, "run", "record.jsonl")) if line["kind"] == "update"]
    per_epoch = math.ceil(recipe.num_train_samples / recipe.batch.global_batch)
    losses = [sum(part) / len(part) for part in (each[i : i + per_epoch] for i in range(0, len(each), per_epoch))]
    return model, {"updates": result.updates, "epochs": recipe.total_epochs, "stopped": None, "losses": losses}


class Study:
    """The runs and paths of one task."""

    def __init__(self, name, out, *, ceiling=CEILING, images=IMAGES, points=POINTS):
        self.name, self.task, self.images, self.points = name, load_task(name), images, points
        self.ceiling = ceiling
        self.path, self.weights = file_of(name, out), out / "weights"
        make_folder(self.weights)
        self.done = {identity(line["key"], line["seed"]): line for line in readable_lines(self.path)}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
        self.facts = {"commit": commit, "environment": environment()}

    def start(self, seed):
        """All that is measured from one start."""
        for arm in ("SB", "LB", "auto"):
            self.line({"arm": arm}, seed, lambda arm=arm: self.run(arm, seed))
        for pair in PAIRS:
            for bend in BENDS:
                self.line({"pair": pair, "bend": bend}, seed, lambda pair=pair, bend=bend: self.way(pair, bend, seed))
        for arm in ("SB", "LB", "auto"):
            self.weights_of(arm, seed).unlink(missing_ok=True)

    def line(self, key, seed, make):
        """The line of that key, which is made if there is none."""
        key = {"task": self.name, **key, "ceiling": self.ceiling, "images": self.images, "points": self.points}
        if identity(key, seed) not in self.done:
            began = time.process_time()
            line = {"key": key, "seed": seed, **make(), **self.facts, "cpu_s": round(time.process_time() - began, 1)}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            names = ("epochs", "stopped", "train_score", "test_score", "loss") if "arm" in key else ()
            told = {name: line[name] for name in names if name in line}
            told |= {name: round(found["value"], 2) for name, found in line.get("sharpness", {}).items()}
            print({name: value for name, value in key.items() if name != "task"}, seed, told, line["cpu_s"], flush=True)
            self.done[identity(key, seed)] = line
        return self.done[identity(key, seed)]

    def run(self, arm, seed):
        """Train an arm, and measure where it ends."""
        recipe = self.recipe(arm, seed)
        began = time.process_time()
        try:
            model, facts = (trained_by_fit if arm == "auto" else trained_until_it_stops)(self.task, recipe)
        except Diverged as error:
            return {"diverged": True, "updates": error.update, "test_score": None, "recipe": recipe.to_dict()}
        facts["train_cpu_s"] = round(time.process_time() - began, 1)
        facts["losses"] = [float(f"{loss:.5g}") for loss in facts["losses"]]
        torch.save(model.state_dict(), self.weights_of(arm, seed))
        seed_everything(seed)
        start = build_model(self.task, recipe, CPU)
        train, test = (evaluate(model, self.task, getattr(self.task.splits(), part), recipe=recipe) for part in ("train", "test"))
        scores = {"train_score": train.score, "train_loss": train.loss, "test_score": test.score, "test_loss": test.loss}
        walked = distance(model.parameters(), start.parameters())
        return {"diverged": False, **scores, "distance": walked, **self.sharpness(model, seed), **facts, "recipe": recipe.to_dict()}

    def recipe(self, arm, seed):
        """Of an arm; auto's is as long as LB's run was."""
        if arm != "auto":
            return recipe_of(self.name, SMALL if arm == "SB" else LARGE, seed, self.ceiling)
        epochs = self.line({"arm": "LB"}, seed, lambda: self.run("LB", seed))["epochs"]
        return plan(recipe_of(self.name, SMALL, seed, epochs), global_batch=LARGE, rule="auto").recipe

    def sharpness(self, model, seed):
        """On training images, in float32 whatever the training ran in."""
        told, batches, losses = {}, self.batches("train"), self.task.losses
        for subspace in SUBSPACES:
            for epsilon in EPSILONS:
                found = keskar_sharpness(model, losses, batches, epsilon=epsilon, subspace=subspace, starts=1, seed=seed, micro_batch=PASS)
                told[f"{subspace or 'full'}, {epsilon:g}"] = found._asdict()
        sam = sam_sharpness(model, losses, batches, rho=RHO, micro_batch=PASS)
        adaptive = adaptive_sharpness(model, losses, batches, rho=ADAPTIVE_RHO, micro_batch=PASS)
        return {"loss": sam.loss, "sharpness": told, "sam": sam.value, "adaptive": adaptive.value}

    def way(self, pair, bend, seed):
        """Loss and accuracy from one arm's weights to another's."""
        arms = [self.line({"arm": arm}, seed, lambda arm=arm: self.run(arm, seed)) for arm in pair]
        if any(arm["diverged"] for arm in arms):
            return {"diverged": True}
        model, states = build_model(self.task, self.recipe("SB", seed), CPU), [self.state(arm, seed) for arm in pair]
        settings = {"scores": self.task.scores, "points": self.points, "bend": bend, "micro_batch": PASS}
        train, test = (path(model, *states, self.task.losses, self.batches(part), **settings) for part in ("train", "test"))
        told = {"train_loss": train.losses, "train_score": train.scores, "test_loss": test.losses, "test_score": test.scores}
        return {"diverged": False, "alphas": train.alphas, **{name: [float(f"{v:.6g}") for v in values] for name, values in told.items()}}

    def state(self, arm, seed):
        """Weights of a run; if they are gone, by the same run again."""
        if not self.weights_of(arm, seed).exists():
            self.run(arm, seed)
        return torch.load(self.weights_of(arm, seed), weights_only=True)

    def batches(self, part):
        """The first training images, or all of the test set."""
        inputs, targets = getattr(self.task.splits(), part).tensors
        most = self.images if part == "train" else len(inputs)
        return [(inputs[:most], targets[:most])]

    def weights_of(self, arm, seed):
        """Where they are kept until the paths are measured."""
        return self.weights / f"{self.name.replace('/', '-')}-{arm}-{seed}-{self.ceiling}.pt"


def identity(key, seed):
    """What a line stands for."""
    return json.dumps([key, seed], sort_keys=True)


def file_of(task, out):
    return out / f"{task.replace('/', '-')}.jsonl"


def plot(task, out, ceiling):
    """Rows: from SB to LB, and to auto. Columns: straight and arc. A thin line a start; a thick one for their mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ways = [line for line in readable_lines(file_of(task, out)) if "pair" in line["key"] and not line["diverged"]]
    ways = [line for line in ways if line["key"]["ceiling"] == ceiling]
    if not ways:
        return
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, constrained_layout=True)
    for row, pair in zip(axes, PAIRS, strict=True):
        for axis, bend in zip(row, BENDS, strict=True):
            lines = [line for line in ways if tuple(line["key"]["pair"]) == pair and line["key"]["bend"] == bend]
            other = axis.twinx()
            for on, name, colour, style in (
                (axis, "train_loss", "tab:blue", "-"),
                (other, "train_score", "tab:red", "-"),
                (other, "test_score", "tab:red", "--"),
            ):
                for line in lines:
                    on.plot(line["alphas"], line[name], colour, linestyle=style, linewidth=0.5, alpha=0.4)
                if lines:
                    mean = [statistics.fmean(values) for values in zip(*(line[name] for line in lines), strict=True)]
                    on.plot(lines[0]["alphas"], mean, colour, linestyle=style, label=name.replace("_", " ").replace("score", "accuracy"))
            axis.set(yscale="log", title=f"{pair[0]} (0) to {pair[1]} (1), {bend or 'straight'}")
            axis.set_ylabel("training loss", color="tab:blue")
            other.set_ylabel("accuracy: training -, test --", color="tab:red")
            other.set_ylim(0, 1.02)
    figure.suptitle(f"{task}, {len({line['seed'] for line in ways})} starts, at most {ceiling} epochs")
    figure.savefig(out / f"{task.replace('/', '-')}{'' if ceiling == CEILING else f'-{ceiling}'}.png", dpi=80)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--tasks", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--ceiling", type=int, default=CEILING, help="epochs; lines stand beside those of another")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--plot", action="store_true", help="draw what is there; run nothing")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for task in arguments.tasks:
        if not arguments.plot:
            study = Study(task, arguments.out, ceiling=arguments.ceiling, images=arguments.images, points=arguments.points)
            mine = range(STARTS[task]) if arguments.half is None else HALVES[task][arguments.half]
            for seed in mine if arguments.seeds is None else arguments.seeds:
                study.start(seed)
        plot(task, arguments.out, arguments.ceiling)


if __name__ == "__main__":
    main()
