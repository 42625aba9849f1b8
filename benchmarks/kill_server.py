"""Is an update ever applied twice? A parameter server is killed with SIGKILL at 20 random moments of a run.

    python benchmarks/kill_server.py [--kills 20] [--kinds count digits]

    count     one weight, whose gradient is always exactly 1, at rate 1: in the end it is minus the number of updates, or something was
              applied twice, or not at all
    digits    digits/mlp, 40 epochs; its test score beside those of five seeds that one worker trained undisturbed

Asynchronous, 3 workers, started by `bigbatch train --workers 3`, a checkpoint every 0.3 s. After each run: is every update in the record
once, every sample applied once, anything left behind? Writes kill_server.json beside this script.
"""

import argparse
import json
import os
import random
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
from bigbatch.tasks.task import Splits
from bigbatch.train.record import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.distributed.jobs import Job, left_behind
from tests.distributed.test_parameter_server import processes

PATH = Path(__file__).with_suffix(".json")
UPDATES = 8000
COUNT = f"""
num_train_samples = 4096
precision = "float64"
optimizer = {{ name = "sgd", lr = 1.0 }}
batch = {{ global_batch = 32, micro_batch = 32 }}
budget = {{ updates = {UPDATES} }}
"""
SETS = {"kind": "parameter_server", "mode": "asynchronous", "staleness_bound": 8, "damping": "none"}
EPOCHS = 80


class Count:
    """The loss is the weight itself."""

    name, metric = "count", "nothing"

    def splits(self):
        data = TensorDataset(torch.ones(4096, 1), torch.zeros(4096))
        few = TensorDataset(torch.ones(4, 1), torch.zeros(4))
        return Splits(data, few, few)

    def model(self):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def losses(self, outputs, targets):
        return outputs.flatten() + targets

    def scores(self, outputs, targets):
        return torch.zeros_like(targets)


def attempt(kind, kills, folder):
    """One run; what came of it."""
    chance = random.Random(f"{kind} {kills}")
    total = UPDATES if kind == "count" else 1297 * EPOCHS // 32 + 1
    (folder / "count.toml").write_text(COUNT)
    sets = {f"comm.{name}": value for name, value in SETS.items()}
    if kind == "digits":
        sets |= {"budget.epochs": EPOCHS, "batch.micro_batch": 32, "comm.damping": "inverse"}
    task = ["kill_server:Count", "--recipe", str(folder / "count.toml")] if kind == "count" else ["digits/mlp"]
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    began = time.monotonic()
    job = Job(folder / kind, *task, *options, "--workers", "3", "--save-every", "0.3", "--quiet", cwd=Path(__file__).parent)
    when, at, killed = sorted(chance.randrange(total * 19 // 20) for _ in range(kills)), 0, []
    for update in when:
        while at < update:
            assert job.process.poll() is None, job.end()
            at = max((line["update"] for line in job.lines() if line["kind"] == "update"), default=0)
            time.sleep(0.005)
        while (pid := processes(job).get("server:0")) is None or pid in killed:
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        at = 0
    code, said = job.end(timeout_s=600)
    lines = job.lines()
    updates = [line["update"] for line in lines if line["kind"] == "update"]
    end = lines[-1]
    found = {
        "kind": kind,
        "kills": len(killed),
        "asked_for_at_updates": when,
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "updates": end.get("updates"),
        "each_update_recorded_once": updates == list(range(1, total + 1)),
        "each_sample_applied_once": end.get("applied") == [[0, end["samples"]]],
        "refused": end.get("refused"),
        "staleness": end.get("staleness"),
        "nothing_left": not left_behind(folder / kind),
        "said": said[-300:] if code else "",
    }
    if kind == "count":
        found["weight"] = torch.load(job.out / "last.pt", weights_only=True)["model"]["weight"].item()
        found["applied_twice"] = -found["weight"] - total
    else:
        found["test_score"] = end.get("test_score")
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=["count", "digits"], choices=["count", "digits"])
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    stored = json.loads(PATH.read_text()) if PATH.exists() else {"runs": {}}
    with tempfile.TemporaryDirectory() as name:
        for kind in arguments.kinds:
            stored["runs"][kind] = {**attempt(kind, arguments.kills, Path(name)), "commit": commit}
            print(stored["runs"][kind], flush=True)
    if "digits" in arguments.kinds:
        torch.set_num_threads(1)
        recipes = [Recipe.named("digits/mlp").replace({"budget.epochs": EPOCHS, "seed": seed}) for seed in range(5)]
        stored["undisturbed"] = [fit("digits/mlp", recipe, quiet=True).test_score for recipe in recipes]
        print(f"undisturbed {100 * statistics.fmean(stored['undisturbed']):.2f} ± {100 * statistics.stdev(stored['undisturbed']):.2f}")
    PATH.write_text(json.dumps({**stored, "environment": environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
