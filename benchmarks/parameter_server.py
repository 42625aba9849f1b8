"""What does one slow worker cost? Four workers around a parameter server, the fourth 4 times slower.

Synchronous, with a backup worker, and asynchronous within several bounds of staleness.

    python benchmarks/parameter_server.py [--seconds 10]

Workers are processes that sleep instead of computing (20 ms a gradient of 16 samples, the slow one 80 ms), so that a small machine's
cores don't decide; weights and gradients of 1 MB really travel. Prints a table and writes parameter_server.json beside this script.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from bigbatch.comm.parameter_server.backup_workers import update_seconds
from bigbatch.comm.parameter_server.client import ParameterClient
from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.train.state.record import environment

PATH = Path(__file__).with_suffix(".json")
WORKERS, SLOWER, SAMPLES, SECONDS_A_GRADIENT, NUMBERS = 4, 4, 16, 0.02, 250_000
ARMS = {
    "synchronous": {"gradients_per_update": 4},
    "synchronous, 1 backup worker": {"gradients_per_update": 3, "backup_workers": 1},
    **{f"asynchronous, at most {bound} late": {"staleness_bound": bound} for bound in (1, 2, 4, 8, 16, 32)},
}


def worker_main(address, token, number):
    """Sleep, and push zeros."""
    seconds = SECONDS_A_GRADIENT * (SLOWER if number == WORKERS - 1 else 1)
    with ParameterClient(address, token, [torch.zeros(NUMBERS)], worker=number) as client:
        while (work := client.pull()) is not None:
            time.sleep(seconds * work.num_samples / SAMPLES)
            client.push(work)


def measure(settings, seconds):
    """Samples per second, and what happened."""
    batch = SAMPLES * settings.get("gradients_per_update", 1)
    queue = WorkQueue(total_samples=1 << 40, global_batch=batch, nonce=1, **settings)
    server = ParameterServer([torch.zeros(NUMBERS)], queue)
    command = [sys.executable, __file__, "worker", server.address, server.token]
    workers = [subprocess.Popen([*command, str(number)]) for number in range(WORKERS)]
    try:
        seen = set()
        while len(seen) < WORKERS:  # until all have had a gradient in
            seen |= {work.worker for work in server.collect().work_items}
            server.publish()
        began, samples, updates, sent = time.perf_counter(), queue.samples, queue.version, server.traffic["sent_bytes"]
        while time.perf_counter() - began < seconds:
            server.collect()
            server.publish()
        took = time.perf_counter() - began
        return {
            "samples_per_s": round((queue.samples - samples) / took, 1),
            "updates_per_s": round((queue.version - updates) / took, 2),
            "weights_sent_mb_per_s": round((server.traffic["sent_bytes"] - sent) / took / 1e6, 1),
            "staleness": {str(tau): count for tau, count in sorted(queue.histogram.items())},
            "late_and_dropped": queue.refused["late"],
        }
    finally:
        server.finish()
        for worker in workers:
            worker.kill()
            worker.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = {}
    for name, settings in ARMS.items():
        rows[name] = measure(settings, arguments.seconds)
        rows[name]["times_synchronous"] = round(rows[name]["samples_per_s"] / rows["synchronous"]["samples_per_s"], 2)
        tau = rows[name]["staleness"]
        mean = sum(int(t) * count for t, count in tau.items()) / sum(tau.values())
        print(f"{name:34} {rows[name]['samples_per_s']:7.0f} samples/s, {rows[name]['times_synchronous']:.2f} times; "
              f"staleness {mean:.2f} on the mean, {max(map(int, tau))} at most", flush=True)  # fmt: skip
    every = [SECONDS_A_GRADIENT] * (WORKERS - 1) + [SECONDS_A_GRADIENT * SLOWER]
    best = {
        "synchronous": WORKERS * SAMPLES / update_seconds(every, 0),
        "synchronous, 1 backup worker": (WORKERS - 1) * SAMPLES / update_seconds(every, 1),
        "asynchronous": sum(SAMPLES / seconds for seconds in every),
    }
    facts = {"workers": WORKERS, "slower": SLOWER, "seconds_a_gradient": SECONDS_A_GRADIENT, "weights_bytes": 4 * NUMBERS}
    content = {**facts, "without_any_cost_samples_per_s": best, "rows": rows, "commit": commit, "environment": environment()}
    PATH.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    worker_main(sys.argv[2], sys.argv[3], int(sys.argv[4])) if sys.argv[1:2] == ["worker"] else main()
