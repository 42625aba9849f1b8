"""What do a slow worker, a lost one and one that hangs cost, where workers take local steps around a parameter server?

    python benchmarks/decoupled.py [--seconds 10] [--times 3]

Four workers take items of ten local updates and push how far they went. Synchronous; with a backup worker; asynchronous with three
displacements an update, where the others wait at the bound of staleness; and a quorum of three with a grace window of so many updates,
beyond which a displacement is refused. First one worker is 4 times slower: samples a second. Then all are equally fast, and one is killed
(SIGKILL) or stopped (SIGSTOP) in the middle of an item, and is not started again: the longest time without an update, less the usual one.

Workers are processes that sleep instead of computing (10 ms an update), so that a small machine's cores don't decide; weights and
displacements of 1 MB really travel. An item that takes longer than 5 s is assigned again (by default 120 s). Prints a table and writes
decoupled.json beside this script.
"""

import argparse
import itertools
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from bigbatch.comm.parameter_server.client import ParameterClient
from bigbatch.comm.parameter_server.decoupled_diloco import LocalUpdates, displacement
from bigbatch.comm.parameter_server.server import ParameterServer
from bigbatch.comm.parameter_server.work_queue import WorkQueue
from bigbatch.train.state.record import environment

PATH = Path(__file__).with_suffix(".json")
WORKERS, SLOWER, LOCAL_BATCH, PERIOD, UPDATE_S, NUMBERS, TIMEOUT_S = 4, 4, 16, 10, 0.01, 250_000, 5.0
BACKUP = {"gradients_per_update": 3, "backup_workers": 1}
ARMS = {
    "synchronous": {"gradients_per_update": 4},
    "synchronous, 1 backup worker": BACKUP,
    **{f"asynchronous, 3 an update, at most {bound} late": {"gradients_per_update": 3, "staleness_bound": bound} for bound in (1, 2, 4)},
    **{f"quorum 3 of 4, grace window {bound}": {**BACKUP, "staleness_bound": bound} for bound in (1, 2, 4)},
}
DEATHS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
BEFORE_S, AFTER_S = 2.0, 7.0


def worker_main(address, token, number, slower):
    """Sleep, and push how far weights went: nowhere."""
    parameters, cut = [torch.zeros(NUMBERS)], LocalUpdates(LOCAL_BATCH, PERIOD, quorum=1)
    with ParameterClient(address, token, parameters, worker=number) as client:
        while (work := client.pull()) is not None:
            pulled = [p.clone() for p in parameters]
            for num_samples in cut.batches(work.num_samples):
                time.sleep(UPDATE_S * slower * num_samples / LOCAL_BATCH)
            client.push(work, 0.0, displacement(pulled, parameters))


class Served:
    """A server and its workers."""

    def __init__(self, settings, slower):
        cut = LocalUpdates(LOCAL_BATCH, PERIOD, settings["gradients_per_update"])
        self.queue = WorkQueue(total_samples=1 << 40, global_batch=cut.update_samples, nonce=1, timeout_s=TIMEOUT_S, **settings)
        self.server = ParameterServer([torch.zeros(NUMBERS)], self.queue)
        command = [sys.executable, __file__, "worker", self.server.address, self.server.token]
        self.workers = [subprocess.Popen([*command, str(number), str(slower if number == WORKERS - 1 else 1)]) for number in range(WORKERS)]
        while len(self.server._peers) < WORKERS:  # until all have begun
            self.server.serve(0.1)

    def update(self):
        update = self.server.collect()
        self.server.publish()
        return update

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.server.close()


def with_a_slow_worker(settings, seconds):
    """Samples a second, and what happened."""
    with Served(settings, SLOWER) as served:
        queue = served.queue
        end = time.perf_counter() + 1.0
        while time.perf_counter() < end:
            served.update()
        began, samples, updates, of_slow = time.perf_counter(), queue.samples, queue.version, 0
        late = queue.refused["late"]
        while time.perf_counter() - began < seconds:
            of_slow += sum(work.worker == WORKERS - 1 for work in served.update().work_items)
        took = time.perf_counter() - began
        return {
            "samples_per_s": round((queue.samples - samples) / took, 1),
            "updates_per_s": round((queue.version - updates) / took, 2),
            "displacements_of_the_slow_worker": of_slow,
            "late_and_refused": queue.refused["late"] - late,
            "staleness": {str(tau): count for tau, count in sorted(queue.histogram.items())},
        }


def with_a_death(settings, number):
    """Seconds of the longest pause after a worker is killed, or stopped, less the usual time between updates."""
    with Served(settings, 1) as served:
        times, began, done = [], time.perf_counter(), False
        victim = served.workers[WORKERS - 1]
        while (now := time.perf_counter()) < began + BEFORE_S + AFTER_S:
            if not done and now > began + BEFORE_S and (work := _computes(served, WORKERS - 1)) is not None:
                time.sleep(max(0.0, work.assigned_s + UPDATE_S * PERIOD / 2 - time.monotonic()))  # the middle of its item
                victim.send_signal(number)
                done, killed = True, time.perf_counter()
            if served.server.collect(timeout_s=0.2) is not None:
                served.server.publish()
                times.append(time.perf_counter())
        assert done, "the victim never had an item"
        before = [b - a for a, b in itertools.pairwise(times) if began + 0.5 < a and b < killed]
        after = [b - a for a, b in zip(times, [*times[1:], time.perf_counter()], strict=True) if b > killed]
        usual = statistics.median(before)
        return {"usual_s": round(usual, 4), "pause_s": round(max(after) - usual, 3), "updates_after": len(after)}


def _computes(served, worker):
    return next((work for work in served.queue._computing.values() if work.worker == worker), None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows, deaths = {}, {}
    for name, settings in ARMS.items():
        row = rows[name] = with_a_slow_worker(settings, arguments.seconds)
        row["times_synchronous"] = round(row["samples_per_s"] / rows["synchronous"]["samples_per_s"], 2)
        print(f"{name:42} {row['samples_per_s']:7.0f} samples/s, {row['times_synchronous']:.2f} times; "
              f"{row['displacements_of_the_slow_worker']} of the slow worker, {row['late_and_refused']} late", flush=True)  # fmt: skip
    for name in (
        "synchronous",
        "synchronous, 1 backup worker",
        "asynchronous, 3 an update, at most 2 late",
        "quorum 3 of 4, grace window 2",
    ):
        for kind, number in DEATHS.items():
            tries = [with_a_death(ARMS[name], number) for _ in range(arguments.times)]
            deaths.setdefault(name, {})[kind] = tries
            pauses = ", ".join(f"{each['pause_s']:.2f}" for each in tries)
            print(f"{name:42} {kind}: pauses of {pauses} s; {tries[0]['usual_s']:.3f} s between updates before", flush=True)
    facts = {"workers": WORKERS, "slower": SLOWER, "period": PERIOD, "local_batch": LOCAL_BATCH, "seconds_an_update": UPDATE_S}
    facts |= {"weights_bytes": 4 * NUMBERS, "timeout_s": TIMEOUT_S}
    content = {**facts, "one_slow_worker": rows, "one_lost_worker": deaths, "commit": commit, "environment": environment()}
    PATH.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    worker_main(*sys.argv[2:4], int(sys.argv[4]), int(sys.argv[5])) if sys.argv[1:2] == ["worker"] else main()
