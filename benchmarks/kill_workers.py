"""Do runs survive what kills them? Each kind of death many times, at random moments.

    python benchmarks/kill_workers.py [--times 20] [--kinds worker first all stop]

    worker    a worker of `--workers 2:3` is killed with SIGKILL: the run goes on with two
    first     the same for the first worker, which writes the checkpoints
    both      two of three are killed: one is replaced, since two were asked for at least
    all       all workers of `--workers 2` are killed; `--resume` then ends in the weights of a run that was never stopped, bit for bit
    stop      SIGTERM to `--workers 2`: exit code 130 and a checkpoint of the last update

digits/mlp, 40 epochs (1,622 updates), a checkpoint about every second. After each: is every update in the record once, what is the test
score (beside those of five undisturbed seeds), is anything left behind? Writes kill_workers.json beside this script; can be stopped and
continued.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bigbatch import Recipe, fit
from bigbatch.train.state.record import environment

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.distributed.jobs import Job, left_behind

PATH = Path(__file__).with_suffix(".json")
EPOCHS, UPDATES = 40, 1622
COMMAND = ["digits/mlp", "--set", f"budget.epochs={EPOCHS}", "--set", "batch.micro_batch=16", "--save-every", "1", "--quiet"]
WORKERS = {"worker": "2:3", "first": "2:3", "both": "2:3", "all": "2", "stop": "2"}


def weights(out):
    return torch.load(out / "last.pt", weights_only=True)["model"]


def attempt(kind, number, folder, whole):
    """One death; what came of it."""
    chance = random.Random(f"{kind} {number}")
    out = folder / f"{kind}-{number}"
    job = Job(out, *COMMAND, "--workers", WORKERS[kind], cwd=folder)
    at = chance.randrange(20, UPDATES * 3 // 4)
    job.wait_for_updates(at)
    workers = job.workers()
    victims = {"worker": workers[1:2], "both": workers[1:], "first": workers[:1], "all": workers, "stop": []}[kind]
    for worker in victims:
        os.kill(worker, signal.SIGKILL)
    if kind == "stop":
        job.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    code, said = job.end(timeout_s=240)
    found = {"kind": kind, "number": number, "at_update": at, "seconds_to_end": round(time.monotonic() - began, 1), "exit_code": code}
    if kind == "stop":
        saved = torch.load(out / "last.pt", weights_only=True)["progress"][0][1]
        last = [line["update"] for line in job.lines() if line["kind"] == "update"][-1]
        return {**found, "good": code == 130 and saved == last and not left_behind(out)}
    if kind == "all":
        job = Job(out, *COMMAND, "--workers", "2", "--resume", cwd=folder)
        code, said = job.end(timeout_s=240)
        same = all(torch.equal(a, b) for a, b in zip(weights(out).values(), whole.values(), strict=True))
        found |= {"exit_code": code, "same_bits": same}
    lines = job.lines()
    once = [line["update"] for line in lines if line["kind"] == "update"] == list(range(1, UPDATES + 1))
    score = next((line["score"] for line in lines if line.get("split") == "test"), None)
    clean = not left_behind(out)
    good = code == 0 and once and clean and found.get("same_bits", True)
    return {
        **found,
        "updates_once": once,
        "test_score": score,
        "nothing_left": clean,
        "good": good,
        **({} if good else {"said": said[-500:]}),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=list(WORKERS), choices=list(WORKERS))
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    stored = json.loads(PATH.read_text()) if PATH.exists() else {"undisturbed": [], "runs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.set_num_threads(1)
        for seed in range(len(stored["undisturbed"]), 5):
            recipe = Recipe.named("digits/mlp").replace({"budget.epochs": EPOCHS, "seed": seed})
            stored["undisturbed"].append(fit("digits/mlp", recipe, quiet=True).test_score)
        whole = {}
        if "all" in arguments.kinds:
            job = Job(folder / "whole", *COMMAND, "--workers", "2", cwd=folder)
            assert job.end()[0] == 0
            whole = weights(job.out)
        for number in range(arguments.times):
            for kind in arguments.kinds:
                if any((run["kind"], run["number"]) == (kind, number) for run in stored["runs"]):
                    continue
                run = attempt(kind, number, folder, whole)
                shutil.rmtree(folder / f"{kind}-{number}")
                stored["runs"].append({**run, "commit": commit})
                stored["environment"] = environment()
                PATH.write_text(json.dumps(stored, indent=1) + "\n")
                print(run, flush=True)
    scores = stored["undisturbed"]
    print(f"undisturbed {100 * statistics.fmean(scores):.2f} ± {100 * statistics.stdev(scores):.2f}")
    for kind in WORKERS:
        runs = [run for run in stored["runs"] if run["kind"] == kind]
        print(
            f"{kind}: {sum(run['good'] for run in runs)} of {len(runs)} good; seconds to the end", [run["seconds_to_end"] for run in runs]
        )


if __name__ == "__main__":
    main()
