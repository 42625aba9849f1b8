"""Scripts as a user has them, without torch so that they start at once; and the settings that go with them."""

import os
import signal
import textwrap
import time

from bigbatch import Recipe

SCRIPT = """
import argparse, math, os, random, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--batch-size", type=int, required=True)
parser.add_argument("--updates", type=int, required=True)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", default=".")
parser.add_argument("--note", default="")
args = parser.parse_args()
rng = random.Random(args.seed)
steps = (math.log10(args.lr / (0.1 * math.sqrt(args.batch_size / 32))))  # the best rate is 0.1 at 32, and grows by the root
speed = args.batch_size / (args.batch_size + 128) * math.exp(-steps * steps)
for update in range(1, args.updates + 1):
    accuracy = 95 * (1 - math.exp(-0.06 * speed * update)) + 0.05 * rng.random()
    if update % max(1, args.updates // 40) == 0:
        print(f"step {update}: train loss {1 / update:.4f}, val acc {accuracy:.3f}", flush=True)
print(f"test_acc {accuracy:.3f}")
"""
RUN = "python train.py --lr {optimizer.lr} --batch-size {batch.global_batch} --updates {num_updates} --seed {seed}"
CURVE = r"step (?P<updates>\d+): train loss (?P<loss>[0-9.]+), val acc (?P<score>[0-9.]+)"
METRIC = {"name": "accuracy", "unit": "%", "better": "higher", "margin": 0.5}
RECIPE = Recipe(
    task="theirs", num_train_samples=4096, optimizer={"name": "sgd", "lr": 0.1}, batch={"global_batch": 32}, budget={"epochs": 2}
)
SETTINGS = f"""
task = "theirs"
num_train_samples = 4096
budget.epochs = 2
batch.global_batch = 32
optimizer = {{ name = "sgd", lr = 0.1 }}
[command]
run = "{RUN}"
score = "test_acc ([0-9.]+)"
curve = '{CURVE}'
metric = {{ name = "accuracy", unit = "%", better = "higher", margin = 0.5 }}
"""


def write_script(folder, text=SCRIPT, name="train.py"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def section(run=RUN, **others):
    return {"run": run, "score": "test_acc ([0-9.]+)", "curve": CURVE, "metric": METRIC, "retries": 0} | others


def trains(recipe, run):
    """A function that needs no torch; in tests/runner, so that worker processes find it."""
    for update in range(1, recipe.num_updates + 1):
        run.log(updates=update, loss=1 / update, score=90 + recipe.seed - 1 / update)
    run.score(90 + recipe.seed)


trains.metric = METRIC


def dies_once(recipe, run):
    """Kills its process in the first attempt of every odd seed, and goes on from its checkpoint in the second."""
    mark = run.checkpoint_dir / "mark"
    if recipe.seed % 2 and not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return 90.0 + recipe.seed


dies_once.metric = METRIC


def dies(recipe, run):
    """Kills its process in every attempt of seed 1."""
    if recipe.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 90.0


dies.metric = METRIC


def fails(recipe, run):
    """Fails for seed 1."""
    return 1 / (recipe.seed - 1)


fails.metric = METRIC


def waits(recipe, run):
    """Waits to be asked to stop."""
    (run.checkpoint_dir / "pid").write_text(str(os.getpid()))
    while True:
        run.log(updates=1, loss=1.0)
        time.sleep(0.05)


waits.metric = METRIC


def threads(recipe, run):
    """Tells on how many threads torch computes."""
    import torch

    return float(torch.get_num_threads())


threads.metric = METRIC


def flushes(recipe, run):
    """Tells whether denormal numbers are zero."""
    from bigbatch.core.hardware.denormals import flushes_denormals

    return float(flushes_denormals())


flushes.metric = METRIC


def notes_its_node(recipe, run):
    """Notes each attempt and its node, and takes a moment."""
    import ray

    with (run.checkpoint_dir / "attempts").open("a") as file:
        file.write(ray.get_runtime_context().get_node_id() + "\n")
    time.sleep(1.5)
    return 90.0 + recipe.seed


notes_its_node.metric = METRIC


def starts_as(recipe, run):
    """1 where processes that a run starts are started as the platform does."""
    import multiprocessing

    return float(multiprocessing.get_start_method() == multiprocessing.get_all_start_methods()[0])


starts_as.metric = METRIC


def tells_its_process(recipe, run):
    """The number of its process."""
    return float(os.getpid())


tells_its_process.metric = METRIC
