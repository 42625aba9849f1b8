"""Is an update ever applied twice? A parameter server is killed with SIGKILL at 20 random moments of a run.

    python benchmarks/kill_server.py [--kills 20] [--kinds count digits]

    count     one weight, whose gradient is always exactly 1, at rate 1: in the end it is minus the number of updates, or something was
              applied twice, or not at all
    digits    digits/mlp, 80 epochs; its test score beside those of five seeds that one worker trained undisturbed

Asynchronous, 3 workers, a checkpoint every 0.2 s. Server and workers are processes forked from this one, which starts a server anew as the
supervisor of `bigbatch train --workers` does (that is tested in tests/distributed), without the seconds that importing torch takes. After
each run: is every update in the record once, and every sample applied once? Writes kill_server.json beside this script.
"""

import argparse
import json
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from bigbatch import Recipe, fit
from bigbatch.comm.parameter_server.process_role import ProcessRole
from bigbatch.comm.parameter_server.supervisor import reserved_ports
from bigbatch.tasks.digits_mlp import DigitsMLP
from bigbatch.tasks.task import Splits
from bigbatch.train.parameter_server.server import run_server
from bigbatch.train.parameter_server.worker import run_worker
from bigbatch.train.state.record import environment, read_record

PATH = Path(__file__).with_suffix(".json")
WORKERS, COUNTED, EPOCHS = 3, 20_000, 80
ASYNCHRONOUS = {"comm": {"kind": "parameter_server", "mode": "asynchronous", "staleness_bound": 8}}
COUNT = Recipe(
    num_train_samples=4096,
    precision="float64",
    optimizer={"name": "sgd", "lr": 1.0},
    batch={"global_batch": 32, "micro_batch": 32},
    budget={"updates": COUNTED},
    **ASYNCHRONOUS,
)
DIGITS = Recipe.named("digits/mlp").replace({**ASYNCHRONOUS, "comm.damping": "inverse", "batch.micro_batch": 32, "budget.epochs": EPOCHS})


class Count:
    """The loss is the weight itself."""

    name, metric = "count", "nothing"

    def splits(self):
        """Ones, and nothing to learn."""
        data = TensorDataset(torch.ones(4096, 1), torch.zeros(4096))
        few = TensorDataset(torch.ones(4, 1), torch.zeros(4))
        return Splits(data, few, few)

    def model(self):
        """One weight, from zero."""
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def losses(self, outputs, targets):
        """The weight."""
        return outputs.flatten() + targets

    def scores(self, outputs, targets):
        """Nothing."""
        return 0 * outputs.flatten() + targets


def forked(action):
    """Number of a process that does it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            action()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def updates_in(out):
    path = out / "record.jsonl"
    return path.read_text().count('"kind": "update"') if path.exists() else 0


def attempt(kind, kills, out):
    """One run; what came of it."""
    chance = random.Random(f"{kind} {kills}")
    task, recipe = (Count(), COUNT) if kind == "count" else (DigitsMLP(), DIGITS)
    began, deaths = time.monotonic(), []
    with reserved_ports(1) as ports:
        facts = ((f"tcp://127.0.0.1:{ports[0]}",), secrets.token_hex(16), WORKERS)

        def serve():
            options = {"save_every_s": 0.2, "quiet": True, "tensorboard": False}
            run_server(task, recipe, ProcessRole(True, 0, *facts), out=out, resume=(out / "last.pt").exists(), **options)

        workers = [forked(lambda number=number: run_worker(task, recipe, ProcessRole(False, number, *facts))) for number in range(WORKERS)]
        server = forked(serve)
        for at in sorted(chance.randrange(recipe.num_updates * 9 // 10) for _ in range(kills)):
            while updates_in(out) < at:
                assert os.waitpid(server, os.WNOHANG) == (0, 0), "the server ended by itself"
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.3))  # also while a server starts, resumes or writes
            os.kill(server, signal.SIGKILL)
            _, status = os.waitpid(server, 0)
            deaths.append(os.WIFSIGNALED(status))
            server = forked(serve)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in (server, *workers)]
    lines = read_record(out / "record.jsonl")
    end = lines[-1]
    updates = [line["update"] for line in lines if line["kind"] == "update"]
    found = {
        "kind": kind,
        "killed": sum(deaths),
        "exit_codes": codes,
        "seconds": round(time.monotonic() - began, 1),
        "updates": end["updates"],
        "each_update_recorded_once": updates == list(range(1, recipe.num_updates + 1)),
        "each_sample_applied_once": end["applied"] == [[0, recipe.total_samples]],
        "refused": end["refused"],
        "staleness": end["staleness"],
        "staleness_bound": end["staleness_bound"],
    }
    if kind == "digits":
        return {**found, "test_score": end["test_score"]}
    weight = torch.load(out / "last.pt", weights_only=True)["model"]["weight"].item()
    return {**found, "weight": weight, "applied_twice": -weight - recipe.num_updates}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=["count", "digits"], choices=["count", "digits"])
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    stored = json.loads(PATH.read_text()) if PATH.exists() else {"runs": {}}
    with tempfile.TemporaryDirectory() as name:
        for kind in arguments.kinds:
            stored["runs"][kind] = {**attempt(kind, arguments.kills, Path(name) / kind), "commit": commit}
            print(stored["runs"][kind], flush=True)
    if "digits" in arguments.kinds:
        torch.set_num_threads(1)
        recipes = [Recipe.named("digits/mlp").replace({"budget.epochs": EPOCHS, "seed": seed}) for seed in range(5)]
        stored["undisturbed"] = [fit("digits/mlp", recipe, quiet=True).test_score for recipe in recipes]
        print(f"undisturbed {100 * statistics.fmean(stored['undisturbed']):.2f} ± {100 * statistics.stdev(stored['undisturbed']):.2f}")
    PATH.write_text(json.dumps({**stored, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
