"""What does the noise scale in the optimizer's norm add to a run of text/gpt? A look over an update, medians of arms in turn.

    python benchmarks/dual_norm_overhead.py [--updates 40]

Updates of the small GPT of text/gpt (0.66 million parameters, four micro-batches of 16 sequences) with AdamW in l1 and with Muon in the
nuclear norm, by turns: without a monitor, again without, between two looks, and with a look, whose reading is in its time. One thread,
processor seconds, which other programs on the machine disturb least. Per update of a run it is (look - without) / 20 at the default
spacing. Writes dual_norm_overhead.json beside this script.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch

from bigbatch.noise import DualNormMonitor
from bigbatch.optim import Muon
from bigbatch.optim.muon.muon_split import muon_groups
from bigbatch.tasks import load_task
from bigbatch.train.state.record import environment

PASSES, PIECE, EVERY = 4, 16, 20
ARMS = ("without", "without, again", "between looks", "look")


def seconds(task, model, optimizer, pieces, monitor):
    began = time.process_time()
    for x, y in pieces:
        (task.losses(model(x), y).sum() / (PASSES * PIECE)).backward()
        if monitor:
            monitor.micro_batch(len(y), divisor=PASSES * PIECE)
    if monitor:
        monitor.update()
        monitor.flush()
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - began


def measure(norm, updates):
    task = load_task("text/gpt")
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4) if norm == "l1" else Muon(muon_groups(model, lr=1e-4, adam_lr=1e-4))
    x, y = next(iter(torch.utils.data.DataLoader(task.splits().train, PASSES * PIECE)))
    pieces = list(zip(x.split(PIECE), y.split(PIECE), strict=True))
    times = {arm: [] for arm in ARMS}
    for number in range(-3, updates):
        turn = number % len(ARMS)
        for arm in ARMS[turn:] + ARMS[:turn]:
            monitor = None
            if not arm.startswith("without"):
                monitor = DualNormMonitor(model, norm=norm, optimizer=optimizer, every_updates=1 if arm == "look" else EVERY)
            taken = seconds(task, model, optimizer, pieces, monitor)
            if monitor:
                monitor.close()
            if number >= 0:
                times[arm].append(taken)
    medians = {arm: statistics.median(values) for arm, values in times.items()}
    extra = {arm: round(medians[arm] / medians["without"] - 1, 4) for arm in ARMS[1:]}
    held = PASSES * sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "median_s": {arm: round(value, 5) for arm, value in medians.items()},
        "extra": extra,
        f"extra_a_run_every_{EVERY}": round(extra["look"] / EVERY, 5),
        "least_spacing_for_5_percent": max(1, -int(-extra["look"] // 0.05)),
        "bytes_held_in_a_look": held,
        "updates": updates,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for norm, name in (("l1", "AdamW"), ("nuclear", "Muon")):
        results[f"{name}, {norm}"] = measure(norm, arguments.updates)
        print(name, norm, results[f"{name}, {norm}"], flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"results": results, "commit": commit, "environment": environment()}, indent=2) + "\n")
